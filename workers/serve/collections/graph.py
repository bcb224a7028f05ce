"""A graph for approximate search of many vectors of one modality (HNSW, by usearch).

It holds vectors as float16, which costs little recall and half the memory; what it finds is scored
again with the exact vectors.

Shapes: B rows, E width of the embeddings.
"""

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from workers.serve.versions.loading import Float32Array

# 50,000 rows of width 256 without clusters, the hardest case: recall at 10 of 0.995 in 1 ms; with a
# connectivity of 16 it is 0.984, with 128 candidates as well 0.957. On rows in clusters each finds
# all. Building takes a third longer than with 16; 256 candidates there double it and find no more.
_CONNECTIVITY = 32
_CANDIDATES_BUILDING = 128
_CANDIDATES_ASKING = 256
_ROWS_AT_ONCE = 2048


def is_installed() -> bool:
    """Whether the extra `search` is there: without it there are no collections."""
    return find_spec("usearch") is not None


class Graph:
    """Rows are numbered in the order in which they were added. Never changed once it is searched."""

    def __init__(self, width: int) -> None:
        # Here, because the rest of serving must start without the extra.
        from usearch.index import Index

        self._index = Index(
            ndim=width,
            metric="ip",
            dtype="f16",
            connectivity=_CONNECTIVITY,
            expansion_add=_CANDIDATES_BUILDING,
            expansion_search=_CANDIDATES_ASKING,
            enable_key_lookups=False,
        )

    def grow(self, vectors_BE: Float32Array) -> Iterator[None]:
        """Add all of them, a few with each step: whoever builds has other things to look after."""
        for start in range(0, len(vectors_BE), _ROWS_AT_ONCE):
            rows = vectors_BE[start : start + _ROWS_AT_ONCE]
            # One thread, as torch has one: the others belong to those who ask.
            self._index.add(np.arange(start, start + len(rows)), rows, threads=1)
            yield

    @property
    def memory_bytes(self) -> int:
        """Of its own copy of the vectors, and of the edges."""
        return int(self._index.memory_usage)

    def nearest(self, query_E: Float32Array, count: int) -> NDArray[np.int64]:
        """Numbers of rows with large inner products, likely the largest."""
        found = self._index.search(query_E, count, threads=1)
        return np.asarray(found.keys, dtype=np.int64)
