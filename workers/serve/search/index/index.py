"""A collection as one version sees it, at one revision: what a search is answered from.

Shapes: E width of the embeddings.
"""

import heapq
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from workers.serve.compute.port import Steps, run_at_once
from workers.serve.search.index.filters import Filter, mask
from workers.serve.search.index.parts import Part
from workers.serve.versions.loading import Float32Array, ServedVersion

# Fewer rows of a modality are compared one by one.
GRAPH_FROM_ROWS = 100_000
# As many are compared in the time that a graph takes: what a filter leaves, if it is no more.
FEW_ROWS = GRAPH_FROM_ROWS // 10
# Of each row in Python's table of ids.
ROW_BYTES = 200


@dataclass(frozen=True)
class Wanted:
    """What is searched for. `modalities` None: all."""

    top_k: int
    modalities: Collection[str] | None = None
    filter: Filter | None = None
    exact: bool = False


@dataclass(frozen=True, order=True)
class Hit:
    """A row that was found; the larger score is the better one. `payload`: JSON, or None."""

    score: float
    id: str
    modality: str
    payload: str | None


@dataclass(frozen=True)
class Found:
    """Best first. `exact`: no other row of the collection can be better."""

    hits: list[Hit]
    exact: bool


@dataclass(frozen=True, eq=False)
class Index:
    """Vectors of one version and no other; immutable. `few`: rows that no graph is asked for."""

    version: ServedVersion
    revision: int
    parts: tuple[Part, ...]
    few: int = FEW_ROWS

    @property
    def rows(self) -> int:
        """How many rows count."""
        return sum(part.live for part in self.parts)

    def rows_of(self, modality: str) -> int:
        """How many of them are of this modality."""
        return sum(part.live for part in self.parts if part.contents.modality == modality)

    def search(self, query_E: Float32Array, wanted: Wanted) -> Found:
        """The rows nearest to a query of unit length that this index' own version embedded."""
        return run_at_once(self.search_in_steps(query_E, wanted))

    def search_in_steps(self, query_E: Float32Array, wanted: Wanted) -> Steps[Found]:
        """The same; a step for each part, and for each condition of a filter."""
        hits, exact = [], True
        for part in self.parts:
            if wanted.modalities is None or part.contents.modality in wanted.modalities:
                found, is_exact = yield from self._search_part(part, query_E, wanted)
                hits += found
                exact = exact and is_exact
        # Equal scores by id, so that all replicas answer alike.
        best = heapq.nsmallest(wanted.top_k, hits, key=lambda hit: (-hit.score, hit.id))
        return Found(best, exact)

    def _search_part(
        self, part: Part, query_E: Float32Array, wanted: Wanted
    ) -> Steps[tuple[list[Hit], bool]]:
        wanted_N = part.live_N
        if wanted.filter is not None:
            wanted_N = wanted_N & (yield from mask(wanted.filter, part.contents.payloads))
        yield
        few = len(part) if wanted.exact else self.few
        nearest = part.nearest(query_E, wanted_N, wanted.top_k, few)
        texts = part.contents.payloads.texts
        hits = [
            Hit(
                float(score),
                part.contents.ids[row].as_py(),
                part.contents.modality,
                texts[row].as_py(),
            )
            for row, score in zip(nearest.rows_K.tolist(), nearest.scores_K, strict=True)
        ]
        return hits, nearest.exact

    @property
    def memory_bytes(self) -> int:
        """Of all that this index holds."""
        return self.contents_bytes + self.vectors_bytes + self.graphs_bytes

    @cached_property
    def contents_bytes(self) -> int:
        """Of ids and payloads, and of the table of ids: what indexes of two versions share."""
        parts = [part.contents for part in self.parts]
        stored = sum(int(each.ids.nbytes) + each.payloads.nbytes for each in parts)
        return stored + ROW_BYTES * sum(map(len, parts))

    @cached_property
    def vectors_bytes(self) -> int:
        """Of vectors, which each version has its own of."""
        return sum(part.vectors_NE.nbytes for part in self.parts)

    @cached_property
    def graphs_bytes(self) -> int:
        """Of graphs, which each version has its own of, too."""
        return sum(part.graph.memory_bytes for part in self.parts if part.graph is not None)
