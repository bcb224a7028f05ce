"""Versions in the memory of a replica: how they are loaded, and which of them answers."""
