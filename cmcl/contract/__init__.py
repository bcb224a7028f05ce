"""What a job is told and what it answers: pydantic models only, no torch, no Ray, no buckets."""

DISTRIBUTION = "cmcl-embeddings"
"""The name under which the package is installed. `cmcl` on PyPI is another project's."""
