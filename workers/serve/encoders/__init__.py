"""Frozen encoders in front of the heads: raw text or images in, features out."""
