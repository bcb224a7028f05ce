"""Frozen encoders: raw items in, features out. Preparation and the endpoint load the same ones."""
