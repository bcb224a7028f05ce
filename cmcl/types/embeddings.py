"""What the query endpoint answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors, and the one version that gave all of them."""

    vectors: list[list[float]]
    version: int
