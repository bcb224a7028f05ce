"""What can be seen from outside: measurements, lines in the log, traces. It decides nothing."""
