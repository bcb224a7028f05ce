"""Versions in the memory of a replica: how they get in, and which of them answers."""
