"""Rows of one modality that are searched together: exactly, or by a graph where they are many.

Everything here is immutable, so that a search can hold on to it while others write.

Shapes: N rows of a part, E width of the embeddings, K rows found.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from workers.serve.search.index.graph import Graph
from workers.serve.search.index.payloads import Mask, Payloads
from workers.serve.versions.loading import Float32Array

# Copying some rows out costs more than scoring them where they are, unless they are few.
_FEW = 0.2
# A graph is asked for more than what is wanted, since some of what it finds does not count.
_SPARE = 16
_MOST_ASKED = 4096

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Contents:
    """What rows are, whatever the version."""

    modality: str
    ids: pa.StringArray
    payloads: Payloads

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Nearest:
    """The best rows of a part, best first. `exact`: no other row can be better."""

    rows_K: Rows
    scores_K: Float32Array
    exact: bool


@dataclass(frozen=True, eq=False)
class Part:
    """`live_N`: rows that were not replaced or removed since."""

    contents: Contents
    vectors_NE: Float32Array
    live_N: Mask
    graph: Graph | None = None

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def live(self) -> int:
        """How many rows count."""
        return int(np.count_nonzero(self.live_N))

    def nearest(self, query_E: Float32Array, wanted_N: Mask, count: int, few: int) -> Nearest:
        """The best of the rows that are wanted, by the graph if there are more than `few` of them."""
        matching = int(np.count_nonzero(wanted_N))
        if self.graph is not None and matching > few:
            found = self._by_graph(self.graph, query_E, wanted_N, count, matching)
            if found is not None:
                return found
        return self._exactly(query_E, wanted_N, count, matching)

    def _exactly(self, query_E: Float32Array, wanted_N: Mask, count: int, matching: int) -> Nearest:
        if matching <= _FEW * len(self):
            rows = np.flatnonzero(wanted_N)
            scores = _scores(self.vectors_NE[rows], query_E)
        else:
            rows = np.arange(len(self))
            scores = _scores(self.vectors_NE, query_E)
            scores[~wanted_N] = -np.inf
        return _best(rows, scores, min(count, matching), exact=True)

    def _by_graph(
        self, graph: Graph, query_E: Float32Array, wanted_N: Mask, count: int, matching: int
    ) -> Nearest | None:
        """None where it would have to be asked for too much, or finds too few that are wanted."""
        asked = int(1.2 * count * len(self) / matching) + _SPARE
        if asked > min(_MOST_ASKED, len(self)):
            return None
        rows = graph.nearest(query_E, asked)
        rows = rows[wanted_N[rows]]
        if len(rows) < count:
            return None
        # Again from the exact vectors: the graph's are rounded, and order would follow that.
        scores = _scores(self.vectors_NE[rows], query_E)
        return _best(rows, scores, count, exact=False)


def joined(parts: Sequence[Part]) -> Part:
    """One part of the rows that count in these, which are of one modality."""
    kept = [part.live_N for part in parts]
    ids = [part.contents.ids.filter(pa.array(keep)) for part, keep in zip(parts, kept, strict=True)]
    vectors = [part.vectors_NE[keep] for part, keep in zip(parts, kept, strict=True)]
    payloads = Payloads.joined([part.contents.payloads for part in parts], kept)
    contents = Contents(parts[0].contents.modality, pa.concat_arrays(ids), payloads)
    return Part(contents, np.concatenate(vectors), np.ones(len(contents), bool))


def _scores(vectors_NE: Float32Array, query_E: Float32Array) -> Float32Array:
    """Cosines: both are of unit length.

    Row by row as they lie in memory: 100,000 of width 256 in 3.4 ms with one thread, where a matrix
    product takes 10 to 14, and usearch's exact search 12.
    """
    scores: Float32Array = np.vecdot(vectors_NE, query_E)
    return scores


def _best(rows: Rows, scores: Float32Array, count: int, *, exact: bool) -> Nearest:
    best = torch.from_numpy(scores).topk(count)
    return Nearest(rows[best.indices.numpy()], best.values.numpy(), exact)
