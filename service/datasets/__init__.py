"""Datasets and uploads: intake, assembly of parts, and validation of shards."""
