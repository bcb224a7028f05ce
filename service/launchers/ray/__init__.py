"""Attempts as jobs of one Ray cluster."""
