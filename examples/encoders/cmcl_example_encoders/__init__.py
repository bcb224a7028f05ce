"""Encoders whose weights are in packages."""
