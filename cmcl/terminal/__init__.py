"""What all commands share: options, what is printed and where, exit codes."""
