"""The index of a collection: vectors of one version at one revision, searched exactly or by a graph (HNSW).

Everything here is immutable, so that a search can use it while others write. Rows of one modality form parts; large
parts have a graph (usearch) with vectors as float16, which costs little recall and half the memory, and what it
finds is scored again with the exact vectors.

Shapes: B rows, N rows of a part, E width of the embeddings, K rows found.
"""

import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from workers.serve.background import Steps, run_to_end
from workers.serve.collections.filters import Filter, mask
from workers.serve.collections.payloads import Mask, Payloads
from workers.serve.versions.loading import Float32Array, ServedVersion

# 50,000 rows of width 256 without clusters, the hardest case: recall at 10 of 0.995 in 1 ms; with a
# connectivity of 16 it is 0.984, with 128 candidates as well 0.957. On rows in clusters each finds
# all. Building takes a third longer than with 16; 256 candidates there double it and find no more.
_CONNECTIVITY = 32
_CANDIDATES_BUILDING = 128
_CANDIDATES_ASKING = 256
_ROWS_AT_ONCE = 2048

# Copying some rows costs more than scoring all of them, unless they are few.
_FEW = 0.2
# A graph is asked for more rows than wanted, because some of what it finds may be filtered out.
_SPARE = 16
_MOST_ASKED = 4096
Rows = NDArray[np.int64]
# With fewer rows a modality is searched exactly.
GRAPH_FROM_ROWS = 100_000
# So many are compared in the time that a graph takes: fewer rows after a filter are searched exactly.
FEW_ROWS = GRAPH_FROM_ROWS // 10
# Bytes of each row in the table of ids, a Python dict.
ROW_BYTES = 200


def is_installed() -> bool:
    """Whether the extra `search` is installed: without it there are no collections."""
    return find_spec("usearch") is not None


class Graph:
    """HNSW graph. Rows are numbered in the order of adding. Not changed once it is searched."""

    def __init__(self, width: int) -> None:
        # Imported here, because the rest of serving must start without the extra.
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
        """Add vectors, a few with each step, so that the thread can do other work between."""
        for start in range(0, len(vectors_BE), _ROWS_AT_ONCE):
            rows = vectors_BE[start : start + _ROWS_AT_ONCE]
            # One thread, as torch has one: the others are for requests.
            self._index.add(np.arange(start, start + len(rows)), rows, threads=1)
            yield

    @property
    def memory_bytes(self) -> int:
        """Bytes of its copy of the vectors, and of the edges."""
        return int(self._index.memory_usage)

    def nearest(self, query_E: Float32Array, count: int) -> NDArray[np.int64]:
        """Return numbers of rows with large inner products, likely the largest."""
        found = self._index.search(query_E, count, threads=1)
        return np.asarray(found.keys, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Contents:
    """Ids and payloads of rows, which do not depend on the version."""

    modality: str
    ids: pa.StringArray
    payloads: Payloads

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Nearest:
    """The best rows of a part, best first. `exact`: all rows were compared."""

    rows_K: Rows
    scores_K: Float32Array
    exact: bool


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one modality. `live_N`: those that were not replaced or removed since."""

    contents: Contents
    vectors_NE: Float32Array
    live_N: Mask
    graph: Graph | None = None

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def live(self) -> int:
        """The number of live rows."""
        return int(np.count_nonzero(self.live_N))

    def nearest(self, query_E: Float32Array, wanted_N: Mask, count: int, few: int) -> Nearest:
        """Return the best of the wanted rows, by the graph if there are more than `few` of them."""
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
        """Search by the graph; None where it would have to return too many rows, or finds too few wanted ones."""
        asked = int(1.2 * count * len(self) / matching) + _SPARE
        if asked > min(_MOST_ASKED, len(self)):
            return None
        rows = graph.nearest(query_E, asked)
        rows = rows[wanted_N[rows]]
        if len(rows) < count:
            return None
        # Scored again with exact vectors, because the graph's are rounded.
        scores = _scores(self.vectors_NE[rows], query_E)
        return _best(rows, scores, count, exact=False)


def joined(parts: Sequence[Part]) -> Part:
    """Return one part of the live rows of these parts, which are of one modality."""
    kept = [part.live_N for part in parts]
    ids = [part.contents.ids.filter(pa.array(keep)) for part, keep in zip(parts, kept, strict=True)]
    vectors = [part.vectors_NE[keep] for part, keep in zip(parts, kept, strict=True)]
    payloads = Payloads.joined([part.contents.payloads for part in parts], kept)
    contents = Contents(parts[0].contents.modality, pa.concat_arrays(ids), payloads)
    return Part(contents, np.concatenate(vectors), np.ones(len(contents), bool))


def _scores(vectors_NE: Float32Array, query_E: Float32Array) -> Float32Array:
    """Cosines: both are of unit length.

    Row by row in memory order: 100,000 of width 256 in 3.4 ms with one thread, where a matrix
    product takes 10 to 14, and usearch's exact search 12.
    """
    scores: Float32Array = np.vecdot(vectors_NE, query_E)
    return scores


def _best(rows: Rows, scores: Float32Array, count: int, *, exact: bool) -> Nearest:
    best = torch.from_numpy(scores).topk(count)
    return Nearest(rows[best.indices.numpy()], best.values.numpy(), exact)


@dataclass(frozen=True)
class SearchQuery:
    """A search. `modalities` None: all."""

    top_k: int
    modalities: Collection[str] | None = None
    filter: Filter | None = None
    exact: bool = False


@dataclass(frozen=True, order=True)
class Hit:
    """A row that was found, with its score (larger is better). `payload`: JSON, or None."""

    score: float
    id: str
    modality: str
    payload: str | None


@dataclass(frozen=True)
class StoredItem:
    """A row of a collection. `payload`: JSON, or None."""

    id: str
    modality: str
    payload: str | None


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first. `exact`: all rows were compared."""

    hits: list[Hit]
    exact: bool


@dataclass(frozen=True, eq=False)
class Index:
    """Vectors of one version; immutable. `few`: up to so many rows are searched exactly.

    `not_learned`: number of items by modality that the version has not learned. They have no vectors.
    """

    version: ServedVersion
    revision: int
    parts: tuple[Part, ...]
    few: int = FEW_ROWS
    not_learned: Mapping[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The number of live rows."""
        return sum(part.live for part in self.parts)

    def rows_of(self, modality: str) -> int:
        """Return the number of live rows of this modality."""
        return sum(part.live for part in self.parts if part.contents.modality == modality)

    def items(self, offset: int, count: int, modality: str | None = None) -> list[StoredItem]:
        """Return up to `count` live rows after `offset` of them, in the order of the parts; of one modality, or of all."""
        found: list[StoredItem] = []
        for part in self.parts:
            contents = part.contents
            if modality is not None and contents.modality != modality:
                continue
            rows = np.flatnonzero(part.live_N)
            texts = contents.payloads.texts
            found += [
                StoredItem(contents.ids[row].as_py(), contents.modality, texts[row].as_py())
                for row in rows[offset : offset + count - len(found)].tolist()
            ]
            offset = max(0, offset - len(rows))
        return found

    def search(self, query_E: Float32Array, wanted: SearchQuery) -> SearchResult:
        """Return the rows nearest to a query of unit length, embedded by the version of this index."""
        return run_to_end(self.search_in_steps(query_E, wanted))

    def search_in_steps(self, query_E: Float32Array, wanted: SearchQuery) -> Steps[SearchResult]:
        """Search in steps: one for each part, and for each condition of a filter."""
        hits, exact = [], True
        for part in self.parts:
            if wanted.modalities is None or part.contents.modality in wanted.modalities:
                found, is_exact = yield from self._search_part(part, query_E, wanted)
                hits += found
                exact = exact and is_exact
        # Ties by id, so that all replicas answer alike.
        best = heapq.nsmallest(wanted.top_k, hits, key=lambda hit: (-hit.score, hit.id))
        return SearchResult(best, exact)

    def _search_part(
        self, part: Part, query_E: Float32Array, wanted: SearchQuery
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
        """Bytes of this index in memory."""
        return self.contents_bytes + self.vectors_bytes + self.graphs_bytes

    @cached_property
    def contents_bytes(self) -> int:
        """Bytes of ids and payloads, and of the table of ids, which indexes of two versions share."""
        parts = [part.contents for part in self.parts]
        stored = sum(int(each.ids.nbytes) + each.payloads.nbytes for each in parts)
        return stored + ROW_BYTES * (sum(map(len, parts)) + sum(self.not_learned.values()))

    @cached_property
    def vectors_bytes(self) -> int:
        """Bytes of vectors, which are not shared between versions."""
        return sum(part.vectors_NE.nbytes for part in self.parts)

    @cached_property
    def graphs_bytes(self) -> int:
        """Bytes of graphs, which are not shared between versions."""
        return sum(part.graph.memory_bytes for part in self.parts if part.graph is not None)
