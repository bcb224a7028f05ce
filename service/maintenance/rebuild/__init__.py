"""Rebuild a lost database from object storage."""
