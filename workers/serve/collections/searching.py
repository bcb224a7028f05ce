"""Searching a collection at one moment, by the vectors of one version.

Shapes: E width of the embeddings.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from workers.serve.collections.columns import column_of
from workers.serve.collections.filters import Filter, sql_of
from workers.serve.collections.table import ITEMS, State
from workers.serve.collections.terms import quoted
from workers.serve.versions.loading import Float32Array, ServedVersion

# Ten times as many candidates as hits would find no more: docs/decisions/0058-*.md.
_RESCORED = 2
# Partitions hold all modalities, and a text's neighbours are texts: of another one more are looked through.
_PARTITIONS = 60
_ALL_PARTITIONS = 1 << 16


@dataclass(frozen=True)
class SearchQuery:
    """A search. `modalities` None: all."""

    top_k: int
    modalities: Collection[str] | None = None
    filter: Filter | None = None
    exact: bool = False


@dataclass(frozen=True, order=True)
class Hit:
    """An item that was found, with its cosine. `payload`: JSON, or None."""

    score: float
    id: str
    modality: str
    payload: str | None


@dataclass(frozen=True)
class StoredItem:
    """An item of a collection. `payload`: JSON, or None."""

    id: str
    modality: str
    payload: str | None


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first. `exact`: all items were compared."""

    hits: list[Hit]
    exact: bool


@dataclass(frozen=True)
class Searched:
    """A collection at one moment, with vectors of one version; immutable."""

    state: State
    version: ServedVersion

    @property
    def revision(self) -> int:
        return self.state.head.revision

    def rows(self, modality: str | None = None) -> int:
        """Return the number of items with vectors, of one modality or of all."""
        wanted = "" if modality is None else f" AND modality = {quoted(modality)}"
        return int(self.state.dataset.count_rows(f"{self._column} IS NOT NULL{wanted}"))

    @cached_property
    def modalities(self) -> Mapping[str, int]:
        """The number of items by modality, with and without vectors."""
        found = Counter[str]()
        for batch in self.state.dataset.to_batches(columns=["modality"], filter=ITEMS):
            for each in pc.value_counts(batch["modality"]):
                found[each["values"].as_py()] += each["counts"].as_py()
        return found

    def items(self, offset: int, count: int, modality: str | None = None) -> list[StoredItem]:
        """Return up to `count` items with vectors after `offset` of them, in the order of the table."""
        wanted = "" if modality is None else f" AND modality = {quoted(modality)}"
        found = self.state.dataset.to_table(
            columns=["id", "modality", "payload"],
            filter=f"{self._column} IS NOT NULL{wanted}",
            offset=offset,
            limit=count,
        )
        return [StoredItem(**each) for each in found.to_pylist()]

    def vectors(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield id, modality, payload and vector of all items with vectors, at most `rows` at a time."""
        yield from self.state.dataset.to_batches(
            columns=["id", "modality", "payload", self._column],
            filter=f"{self._column} IS NOT NULL",
            batch_size=rows,
        )

    @cached_property
    def _is_indexed(self) -> bool:
        return self._column in self.state.indexes()

    @property
    def _column(self) -> str:
        return column_of(self.version)

    def search(self, query_E: Float32Array, wanted: SearchQuery) -> SearchResult:
        """Return the items nearest to a query that this version embedded."""
        column, dataset = self._column, self.state.dataset
        exact = wanted.exact or not self._is_indexed
        nearest = {"column": column, "q": query_E, "k": wanted.top_k, "metric": "cosine"}
        if exact:
            nearest["use_index"] = False
        else:
            narrowed = wanted.modalities is not None or wanted.filter is not None
            nearest["refine_factor"] = _RESCORED
            nearest["minimum_nprobes"] = _ALL_PARTITIONS if narrowed else _PARTITIONS
        found = dataset.scanner(
            columns=["id", "modality", "payload", "_distance"],
            nearest=nearest,
            filter=_conditions(wanted, dataset.schema.names),
            prefilter=True,
            disable_scoring_autoprojection=True,
        ).to_table()
        hits = [
            Hit(1 - each["_distance"], each["id"], each["modality"], each["payload"])
            for each in found.to_pylist()
        ]
        # Ties by id, so that all replicas answer alike.
        return SearchResult(sorted(hits, key=lambda hit: (-hit.score, hit.id)), exact)


def newest(state: State, versions: Collection[ServedVersion]) -> Searched | None:
    """Return what answers: the first of these versions whose column is complete, the live one first."""
    for version in versions:
        if column_of(version) in state.head.complete:
            return Searched(state, version)
    return None


def _conditions(wanted: SearchQuery, columns: Collection[str]) -> str:
    parts = [ITEMS]
    if wanted.modalities is not None:
        parts = [f"modality IN ({', '.join(map(quoted, sorted(wanted.modalities)))})"]
    if wanted.filter is not None:
        parts.append(f"({sql_of(wanted.filter, columns)})")
    return " AND ".join(parts)
