"""Data exchanged between control plane, workers and replicas: pydantic models only, no torch, Ray or storage."""

DISTRIBUTION = "cmcl-embeddings"
"""The name of the distribution. `cmcl` on PyPI is another project."""
