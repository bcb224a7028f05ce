"""Datasets and uploads: intake, assembly of parts, encoders of features."""
