"""How an attempt gets to run: one port, several ways."""
