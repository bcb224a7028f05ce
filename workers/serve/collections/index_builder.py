"""Builder of an index: the mutable side, used from one thread.

The `index` that it returns is immutable and shares all large arrays with it. Masks of rows are copied when rows are
removed, never changed, so a half-applied change is never visible, and can be applied again.

Shapes: B rows of a batch, F width of the raw feature, E width of the embeddings.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from cmcl.contract.errors import InvalidVersion
from workers.serve.collections.compaction import first_to_merge
from workers.serve.collections.index import GRAPH_FROM_ROWS, Contents, Graph, Index, Part, joined
from workers.serve.collections.payloads import Payloads
from workers.serve.collections.revision_log import Revision
from workers.serve.collections.segments import features_matrix
from workers.serve.versions.loading import Float32Array, ServedVersion

_MOST_SMALL_PARTS = 8
# Bytes of payloads and their tables in parts that are merged, which takes about five times as much for a moment.
_MOST_MERGED_BYTES = 32 << 20
# Bytes of payloads that are read at once: their values are Python objects for a moment.
_READ_BYTES = 1 << 20
# The place of a row is one number, to save memory: its part, and the row in it.
_ROW_BITS = 32
_ROW_MASK = (1 << _ROW_BITS) - 1


class IndexBuilder:
    """Rows of a collection with vectors of one version. `revision`: the last that was applied.

    Rows of modalities that the version has not learned are left out: its vectors of them would be noise.
    """

    def __init__(
        self, version: ServedVersion, revision: Revision | None, graph_from: int = GRAPH_FROM_ROWS
    ) -> None:
        self.version = version
        self.revision = revision
        self._graph_from = graph_from
        self._parts: dict[int, Part] = {}
        self._places: dict[str, int] = {}
        self._next_part = 0
        # Modality by id of each row that is left out.
        self._left_out: dict[str, str] = {}

    def with_vectors(
        self, version: ServedVersion, vectors: Mapping[int, Float32Array], frozen: "FrozenRows"
    ) -> "IndexBuilder":
        """Return a builder of the frozen rows with vectors of another version, which has those of some parts."""
        other = IndexBuilder(version, frozen.revision, self._graph_from)
        other._parts = {
            number: replace(frozen.parts[number], vectors_NE=vectors_NE, graph=None)
            for number, vectors_NE in vectors.items()
        }
        other._places, other._left_out = dict(frozen.places), dict(frozen.left_out)
        for number in frozen.parts.keys() - vectors.keys():
            part = frozen.parts[number]
            ids = part.contents.ids.filter(pa.array(part.live_N)).to_pylist()
            other._left_out.update(dict.fromkeys(ids, part.contents.modality))
            for each in ids:
                del other._places[each]
        other._next_part = self._next_part
        return other

    @property
    def left_out(self) -> frozenset[str]:
        """Modalities of the rows that are left out."""
        return frozenset(self._left_out.values())

    def frozen(self) -> "FrozenRows":
        """Return the present rows, for work that takes longer than until the next change."""
        return FrozenRows(
            self.revision, dict(self._parts), dict(self._places), dict(self._left_out)
        )

    def index(self) -> Index:
        """Return the present state as an immutable index."""
        number = self.revision.revision if self.revision else 0
        not_learned = Counter(self._left_out.values())
        parts = tuple(self._parts.values())
        return Index(self.version, number, parts, self._graph_from // 10, not_learned)

    def apply(self, batch: pa.RecordBatch) -> None:
        """Apply rows of a segment, which come after all rows so far. Idempotent.

        Raises InvalidVersion where features do not fit the version.
        """
        present = dict(by_modality(batch.filter(pc.invert(batch["deleted"]))))
        not_learned = self.version.not_learned
        batches = [
            (modality, rows, project(self.version, modality, features_matrix(rows["feature"])))
            for modality, rows in present.items()
            if modality not in not_learned
        ]
        self._remove(batch.column("id").to_pylist())
        for modality in present.keys() & not_learned:
            self._left_out.update(dict.fromkeys(present[modality]["id"].to_pylist(), modality))
        for modality, rows, vectors_BE in batches:
            for start, stop in _pieces(rows.column("payload")):
                piece = rows.slice(start, stop - start)
                payloads = Payloads.of(piece.column("payload"))
                self._add(Contents(modality, piece.column("id"), payloads), vectors_BE[start:stop])
        self._tidy()

    def build_graphs(self) -> Iterator[None]:
        """Build graphs for parts that have become large, a few rows with each step."""
        for number in self._without_graph():
            part = self._parts.get(number)
            if part is None:
                continue
            graph = Graph(part.vectors_NE.shape[1])
            yield from graph.grow(part.vectors_NE)
            # Rows may have been removed since, but their numbers stay; or the part itself was removed.
            if number in self._parts:
                self._parts[number] = replace(self._parts[number], graph=graph)

    @property
    def needs_graphs(self) -> bool:
        """Whether a part lacks a graph and is too large to be searched exactly."""
        return bool(self._without_graph())

    def _without_graph(self) -> list[int]:
        """Parts of half as many rows, in modalities that have enough rows.

        The first of the parts that `_merge` leaves holds more than half of what begins with it, so
        that fewer than `graph_from` rows of each modality remain without.
        """
        large = self._graph_from // 2
        return [
            number
            for numbers in self._by_modality().values()
            if sum(self._parts[number].live for number in numbers) >= self._graph_from
            for number in numbers
            if self._parts[number].graph is None and len(self._parts[number]) >= large
        ]

    def _add(self, contents: Contents, vectors_BE: Float32Array) -> None:
        self._put(Part(contents, vectors_BE, np.ones(len(contents), bool)))

    def _put(self, part: Part) -> None:
        number, self._next_part = self._next_part, self._next_part + 1
        self._parts[number] = part
        first = number << _ROW_BITS
        self._places.update(
            zip(part.contents.ids.to_pylist(), range(first, first + len(part)), strict=True)
        )

    def _remove(self, ids: Iterable[str]) -> None:
        gone: dict[int, list[int]] = defaultdict(list)
        for each in ids:
            self._left_out.pop(each, None)
            place = self._places.pop(each, None)
            if place is not None:
                gone[place >> _ROW_BITS].append(place & _ROW_MASK)
        for number, rows in gone.items():
            live = self._parts[number].live_N.copy()
            live[rows] = False
            self._parts[number] = replace(self._parts[number], live_N=live)

    def _tidy(self) -> None:
        """Merge small parts, and rewrite those of which most rows were removed."""
        for number, part in list(self._parts.items()):
            if part.live == 0:
                del self._parts[number]
        for numbers in self._by_modality().values():
            self._merge(numbers)

    def _by_modality(self) -> Mapping[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for number, part in self._parts.items():
            found[part.contents.modality].append(number)
        return found

    def _merge(self, numbers: Sequence[int]) -> None:
        small = [number for number in numbers if self._has_few_bytes(number)]
        sizes = [self._parts[number].live for number in small]
        first = first_to_merge(sizes)
        run = sizes[first:]
        is_large = sum(run) >= self._graph_from and run[0] <= sum(run[1:])
        if len(small) > _MOST_SMALL_PARTS or is_large:
            self._rewrite(self._few_bytes(small[first:]))
            return
        for number in numbers:
            if self._parts[number].live < len(self._parts[number]) // 2:
                self._rewrite([number])

    def _has_few_bytes(self, number: int) -> bool:
        """Whether the part may be merged: two such parts always can be."""
        return self._parts[number].contents.payloads.nbytes <= _MOST_MERGED_BYTES // 2

    def _few_bytes(self, numbers: Sequence[int]) -> list[int]:
        """The last of these parts whose payloads have few bytes together; at least one."""
        sizes = [self._parts[number].contents.payloads.nbytes for number in reversed(numbers)]
        few = int(np.searchsorted(np.cumsum(sizes), _MOST_MERGED_BYTES, side="right"))
        return list(numbers[-max(few, 1) :])

    def _rewrite(self, numbers: Sequence[int]) -> None:
        parts = [self._parts.pop(number) for number in numbers]
        self._put(joined(parts))


@dataclass(frozen=True, eq=False)
class FrozenRows:
    """The rows of a builder at one revision; immutable."""

    revision: Revision | None
    parts: Mapping[int, Part]
    places: Mapping[str, int]
    left_out: Mapping[str, str]

    def places_of(
        self, ids: pa.StringArray, modality: str
    ) -> Iterator[tuple[int, tuple[list[int], list[int]]]]:
        """Yield by part its rows and the indices of these ids, for parts of this modality."""
        found: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for index, each in enumerate(ids.to_pylist()):
            place = self.places.get(each)
            if place is not None:
                rows, indices = found[place >> _ROW_BITS]
                rows.append(place & _ROW_MASK)
                indices.append(index)
        for number, both in found.items():
            if self.parts[number].contents.modality == modality:
                yield number, both


def _pieces(payloads: pa.StringArray) -> Iterator[tuple[int, int]]:
    """Yield where runs of rows begin and end whose payloads have few bytes together; at least one row."""
    sizes = pc.fill_null(pc.binary_length(payloads), 0).to_numpy(zero_copy_only=False)
    ends, start = np.cumsum(sizes, dtype=np.int64), 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + _READ_BYTES, side="right"))
        yield start, max(stop, start + 1)
        start = max(stop, start + 1)


def by_modality(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield its rows by modality."""
    column = batch.column("modality")
    for modality in column.unique().to_pylist():
        yield modality, batch.filter(pc.equal(column, modality))


@torch.inference_mode()
def project(version: ServedVersion, modality: str, features_BF: Float32Array) -> Float32Array:
    """Return unit embeddings (B × E). Raises InvalidVersion where the version has no such head."""
    width = version.spec.widths.get(modality)
    if width != features_BF.shape[1]:
        raise InvalidVersion(
            f"features of modality {modality!r} have width {features_BF.shape[1]}, "
            f"{version.label} expects {width or 'no such modality'}"
        )
    embeddings: Float32Array = version.heads.embed(modality, torch.from_numpy(features_BF)).numpy()
    return embeddings
