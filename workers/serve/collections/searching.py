"""Searching a collection at one moment, by the vectors of one version and by the words of payloads.

Vectors of bits, and shorter ones than the model's, choose candidates. These are scored by embeddings of their features.

Shapes: B rows, F width of the feature, E width of the model's embeddings.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from workers.serve.collections.columns import PARTITIONS, column_of, vector_width
from workers.serve.collections.filters import filter_sql, is_among, quoted
from workers.serve.collections.table import (
    CHECKSUMS,
    ITEM,
    State,
    check_features,
    check_rows,
    encoded,
    is_bits,
    reading,
)
from workers.serve.versions.loading import Float32Array, ServedVersion, truncated

# Candidates that are scored by their vectors, for each result: docs/benchmarks/search-engine.md.
_RESCORED = 4
# Candidates for so many results where features score them, and at most so many more than results.
_CANDIDATES, _MOST_CANDIDATES = 20, 2000
_ROWS_AT_ONCE = 4096
# Where so few items pass a filter, comparing them all is faster, and exact.
_FEW = 1000
# Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): the constant, and how many of each ranking.
_RRF_CONSTANT = 60
_FUSED = 100
# Of parts that are looked through for so many parents, at first and at most.
_PARTS, _MOST_PARTS = 4, 64


@dataclass(frozen=True)
class SearchQuery:
    """A search by a vector, by words, or by both. `modalities` None: all. `filter`: SQL. `exact`: compare all vectors.

    `by_parent`: of parts with the same parent only the best. `include`: `source` and `thumbnail`.
    """

    top_k: int
    query_E: Float32Array | None = None
    words: str | None = None
    modalities: Collection[str] | None = None
    filter: str | None = None
    exact: bool = False
    by_parent: bool = False
    include: Sequence[str] = ()


@dataclass(frozen=True)
class StoredItem:
    """An item of a collection. `payload`: JSON, or None. Others: see `Row`; None also where they are not included."""

    id: str
    modality: str
    payload: str | None
    parent: str | None
    start: float | None
    end: float | None
    source: str | None = None
    thumbnail: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Hit(StoredItem):
    """An item that was found. `score`: its cosine; of words that of BM25, of both the sum of reciprocal ranks."""

    score: float


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first. `exact`: all vectors were compared."""

    hits: list[Hit]
    exact: bool


@dataclass(frozen=True)
class Searched:
    """A collection at one moment, with vectors of one version; immutable."""

    state: State
    version: ServedVersion

    def filter_sql(self, document: object) -> str:
        """Return the SQL of a filter of this table. Raises InvalidFilter."""
        return filter_sql(document, self.state.dataset.schema.names)

    @property
    def revision(self) -> int:
        return self.state.head.revision

    @property
    def width(self) -> int:
        """How many numbers of the embeddings the vectors have."""
        return vector_width(self.state.head.spec, self.version)

    @property
    def are_compressed(self) -> bool:
        """Whether vectors choose candidates only, which features score."""
        return is_bits(self._type) or self.width < self.version.spec.width

    def rows(self, modality: str | None = None) -> int:
        """Return the number of items with vectors, of one modality or of all."""
        return self.state.count(self._of(None if modality is None else [modality]))

    @cached_property
    def modalities(self) -> Mapping[str, int]:
        """The number of items by modality, with and without vectors."""
        counts = {
            name: self.state.count(f"modality = {quoted(name)}")
            for name in self.version.spec.modalities
        }
        return {name: count for name, count in counts.items() if count}

    def items(
        self,
        offset: int,
        count: int,
        modality: str | None = None,
        include: Sequence[str] = (),
        ids: Sequence[str] = (),
    ) -> list[StoredItem]:
        """Return up to `count` items with vectors after `offset` of them, in the order of the table; with `ids`, of these."""
        wanted = self._of(None if modality is None else [modality])
        if ids:
            wanted += f" AND id IN ({', '.join(map(quoted, ids))})"
        return self._stored(include, filter=wanted, offset=offset, limit=count)

    def items_after(self, item: str, count: int) -> list[StoredItem]:
        """Return up to `count` items with vectors whose ids come after this one, in their order."""
        wanted = f"{self._of()} AND id > {quoted(item)}"
        return self._stored(filter=wanted, order_by=["id"], limit=count)

    def item(self, item: str) -> StoredItem | None:
        """Return the item with this id, if it has a vector."""
        found = self._stored(filter=f"{self._of()} AND id = {quoted(item)}")
        return found[0] if found else None

    def vectors(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield id, modality, payload and vector of all items with vectors, at most `rows` at a time."""
        columns = ["id", "modality", "payload"]
        source = "feature" if is_bits(self._type) else self.column
        with reading(self.state.table.uri):
            for batch in self.state.dataset.to_batches(
                columns=[*ITEM, CHECKSUMS, source], filter=self._of(), batch_size=rows
            ):
                self._checked(batch)
                made = batch[source]
                if is_bits(self._type):
                    made_BD = truncated(self._embedded(batch), self.width)
                    made = pa.FixedSizeListArray.from_arrays(made_BD.ravel(), self.width)
                yield pa.record_batch(
                    [*(batch[name] for name in columns), made], [*columns, "vector"]
                )

    def search(self, wanted: SearchQuery) -> SearchResult:
        """Return the items nearest to a query, of those with vectors. Raises StorageUnavailable, InvalidVersion."""
        if not wanted.by_parent:
            return self._items(wanted)
        for times in (_PARTS, _MOST_PARTS):
            found = self._items(replace(wanted, top_k=times * wanted.top_k))
            best: dict[str, Hit] = {}
            for hit in found.hits:
                best.setdefault(hit.id if hit.parent is None else hit.parent, hit)
            if len(best) >= wanted.top_k or len(found.hits) < times * wanted.top_k:
                break
        hits = [*best.values()][: wanted.top_k]
        assert hits == _ranked(hits), "the best one is first"
        return SearchResult(hits, found.exact)

    def _items(self, wanted: SearchQuery) -> SearchResult:
        if wanted.words is None:
            return self._nearest(wanted, wanted.top_k)
        if wanted.query_E is None:
            return SearchResult(self._matching(wanted, wanted.top_k), exact=True)
        near = self._nearest(wanted, max(wanted.top_k, _FUSED))
        scores: defaultdict[str, float] = defaultdict(float)
        items: dict[str, Hit] = {}
        for ranking in (near.hits, self._matching(wanted, max(wanted.top_k, _FUSED))):
            for rank, hit in enumerate(ranking, start=1):
                scores[hit.id] += 1 / (_RRF_CONSTANT + rank)
                items[hit.id] = hit
        fused = _ranked(replace(each, score=scores[each.id]) for each in items.values())
        return SearchResult(fused[: wanted.top_k], near.exact)

    def _nearest(self, wanted: SearchQuery, count: int) -> SearchResult:
        assert wanted.query_E is not None
        assert wanted.query_E.shape == (self.version.spec.width,)
        has_index = self.column in self.state.indexes
        exact = wanted.exact or not (has_index or self.are_compressed)
        if not exact and wanted.filter is not None:
            exact = self.state.count(self._conditions(wanted)) <= _FEW
        if exact and self.are_compressed:
            every = self.version.spec.modalities if wanted.modalities is None else wanted.modalities
            return SearchResult(self._rescored(replace(wanted, modalities=every), count), exact)
        query_1N = encoded(truncated(wanted.query_E[None], self.width), self._type)
        assert query_1N.shape == (1, self._type.list_size)
        nearest: dict[str, Any] = {
            "column": self.column,
            "q": pa.array(query_1N[0]) if is_bits(self._type) else query_1N[0],
            "k": count,
            "metric": "hamming" if is_bits(self._type) else "cosine",
        }
        if exact or not has_index:
            nearest["use_index"] = False
        else:
            nearest["minimum_nprobes"] = PARTITIONS
        if self.are_compressed:
            nearest["k"] = min(_CANDIDATES * count, _MOST_CANDIDATES + count)
            return SearchResult(self._rescored(wanted, count, nearest=nearest), exact)
        if not exact:
            nearest["refine_factor"] = _RESCORED
        found = self._scanned(wanted, "_distance", nearest=nearest)
        hits = (Hit(**item, score=1 - distance) for item, distance in found)
        return SearchResult(_ranked(hits), exact)

    def _rescored(self, wanted: SearchQuery, count: int, **how: Any) -> list[Hit]:
        """Return the best of the rows that are found, by the cosine of the query and their embeddings."""
        assert wanted.query_E is not None
        best: list[Hit] = []
        with reading(self.state.table.uri):
            for batch in self._scanner(wanted, "feature", **how).to_batches():
                if not batch.num_rows:
                    continue
                scores_B = self._embedded(batch) @ wanted.query_E
                # All that tie with the last, so that they are in the order of ids.
                least = np.sort(scores_B)[-count:][0]
                places = np.flatnonzero(scores_B >= least)
                items = self._checked(batch.take(pa.array(places)))
                found = (
                    Hit(**item, score=float(scores_B[at]))
                    for item, at in zip(items, places, strict=True)
                )
                best = _ranked([*best, *found])[:count]
        return best

    def _embedded(self, batch: pa.RecordBatch) -> Float32Array:
        """Return the embeddings (B x E) of features that are stored."""
        made_BE = np.empty((batch.num_rows, self.version.spec.width), np.float32)
        modalities_B = batch["modality"].to_numpy(zero_copy_only=False)
        assert set(modalities_B) <= self.version.learned, "rows without an embedding"
        for modality in set(modalities_B):
            places = np.flatnonzero(modalities_B == modality)
            values = batch["feature"].take(pa.array(places)).flatten().to_numpy()
            features_BF = values.reshape(len(places), -1).astype(np.float32)
            made_BE[places] = self.version.heads.embed(modality, torch.from_numpy(features_BF))
        return made_BE

    def _matching(self, wanted: SearchQuery, count: int) -> list[Hit]:
        words = {"query": wanted.words, "columns": ["text"]}
        found = self._scanned(wanted, "_score", full_text_query=words, limit=count)
        return _ranked(Hit(**item, score=score) for item, score in found)

    def _scanned(
        self, wanted: SearchQuery, score: str, **how: Any
    ) -> Iterator[tuple[dict[str, Any], float]]:
        with reading(self.state.table.uri):
            found = self._scanner(wanted, score, **how).to_table()
        scores = found.column(score).to_pylist()
        yield from zip(self._checked(found.drop_columns(score)), scores, strict=True)

    def _scanner(self, wanted: SearchQuery, column: str, **how: Any) -> Any:
        """Read items that may be found, with one more column."""
        return self.state.dataset.scanner(
            columns=[*ITEM, *wanted.include, CHECKSUMS, column],
            filter=self._conditions(wanted),
            prefilter=True,
            disable_scoring_autoprojection=True,
            batch_size=_ROWS_AT_ONCE,
            **how,
        )

    def _stored(self, include: Sequence[str] = (), **how: Any) -> list[StoredItem]:
        found = self.state.scan(columns=[*ITEM, *include, CHECKSUMS], **how)
        return [StoredItem(**each) for each in self._checked(found)]

    def _checked(self, rows: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
        """Return items, without features and vectors, as they were written. Raises InvalidVersion."""
        if "feature" in rows.schema.names and rows.num_rows:
            check_features(rows, self.state.table.uri)
        kept = {*ITEM, "source", "thumbnail", CHECKSUMS}
        items: list[dict[str, Any]] = rows.select(
            [name for name in rows.schema.names if name in kept]
        ).to_pylist()
        check_rows(items, self.state.table.uri)
        return items

    def _conditions(self, wanted: SearchQuery) -> str | None:
        """Return the SQL of items that may be found; None: all that have a vector."""
        conditions = []
        if wanted.modalities is not None or wanted.words is not None:
            conditions.append(self._of(wanted.modalities))
        if wanted.filter is not None:
            conditions.append(f"({wanted.filter})")
        return " AND ".join(conditions) or None

    def _of(self, modalities: Collection[str] | None = None) -> str:
        """Return the SQL of items with vectors: those of a modality that the version has learned."""
        learned = self.version.learned
        return is_among(learned if modalities is None else learned & set(modalities))

    @property
    def column(self) -> str:
        """The column of the version's vectors."""
        return column_of(self.version)

    @property
    def _type(self) -> pa.DataType:
        return self.state.dataset.schema.field(self.column).type


def _ranked(hits: Iterable[Hit]) -> list[Hit]:
    """Ties by id, so that all replicas answer alike."""
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))
