"""What happens to every request: a limit for its body, an id, a line in the log, a measurement."""
