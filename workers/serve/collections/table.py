"""A collection as one table of Lance: its items, their vectors by version, and a head row with its state.

Columns: `id`, `modality`, `feature` (a list: widths differ by modality), `payload` (JSON), `terms` and those of fields
(for filters) and `text` (for words): `filters.py`; `parent`, `start` and `end` of a part; `source` and `thumbnail`, which
are read only where they are asked for; `checksums`; and one of vectors for each version that serves or is being made
(`columns.py`). A removed item keeps its id until the table is compacted; all else of it is null.

**Checksums.** Lance has none. Those of a row are of its item, feature, source and thumbnail, apart since they are read
apart, and of the table's key, so that a copied row is refused in another table. What is read is compared with its
checksum before it is answered or embedded. Vectors have none: they are made from features.

**The head row** has the empty id, and the collection's state as its payload. Every change of items updates it in the
same commit. Lance refuses the second of two commits that update the same row, and only then: two inserts of the same
new id both succeed. So with the head row a change is applied to the state that it was planned on, or planned again.
That makes writes idempotent (a write looks for its mark in the head), and numbers revisions, which Lance's versions
cannot: compaction and indexes make versions too.

Shapes: B rows, F width of the raw feature, E width of the embeddings.
"""

import json
import logging
import random
import re
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from operator import methodcaller
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import lance
import numpy as np
import pyarrow as pa
import torch
from lance.commit import CommitConflictError
from pydantic import Field, StringConstraints, ValidationError

from cmcl.contract.api.endpoint import FloatType, VectorType
from cmcl.contract.errors import InvalidVersion, ObjectExists, StorageUnavailable, WorkerError
from cmcl.contract.modality import NAME_PATTERN, Frozen, ModelName
from workers.serve.collections.filters import RANGES, PayloadTerms, quoted, range_type, text_of
from workers.serve.versions.loading import Float32Array

logger = logging.getLogger(__name__)

CollectionName = Annotated[
    str, StringConstraints(pattern=NAME_PATTERN), Field(examples=["street-photos"])
]
HEAD_ID = ""
CHECKSUMS = "checksums"
# What the checksum of an item is of.
ITEM = ("id", "modality", "payload", "parent", "start", "end")
_CHECKED_APART = ("feature", "source", "thumbnail")
ITEMS = "modality IS NOT NULL"
VECTORS = "vectors_"
NOTHING: Mapping[str, float] = MappingProxyType({})
# Of fields that a range filter can name.
_MOST_RANGES = 64
# A repeated write is recognised among so many later ones.
_KEPT_MARKS = 512
# Short, or the one that writes most often would always be first.
_ATTEMPTS = 200
_LONGEST_PAUSE_SECONDS = 0.02

# Vectors (B x E) of features of one modality (B x F), by the version of a column; None: it has not learned them.
Embed = Callable[[str, str, Float32Array], Float32Array | None]


class NoCollection(WorkerError):
    """The collection was deleted."""


class CollectionBusy(WorkerError):
    """Other writers were faster, many times in a row. Trying again can help."""

    retry_can_help = True


class VersionGone(WorkerError):
    """The version of a column is no longer stored."""

    def __init__(self, column: str) -> None:
        super().__init__(f"the version of {column} is no longer stored")
        self.column = column


class Row(NamedTuple):
    """An item to write. `feature_F` None: to remove. `payload`: JSON, or None.

    `parent`: what it is a part of; `start`, `end`: where in it, in seconds or pages. `source`: address of the original.
    """

    id: str
    modality: str
    feature_F: Float32Array | None
    payload: str | None
    parent: str | None = None
    start: float | None = None
    end: float | None = None
    source: str | None = None
    thumbnail: bytes | None = None


def removal(id_: str) -> Row:
    """Return what is written where an item is removed."""
    return Row(id_, "", None, None)


class CollectionSpec(Frozen):
    """The properties of a collection, which never change."""

    name: CollectionName
    model: ModelName
    owner: str | None = Field(
        description="None: for all callers where no keys are required, and for the operator"
    )
    feature_type: FloatType = Field(description="of stored features")
    vector_type: VectorType = Field(description="of vectors")
    dimensions: int | None = Field(description="of vectors; None: all of the model")
    text_fields: tuple[str, ...] = Field(description="of payloads, whose words are searched")


class Head(Frozen):
    """The state of a collection, in its head row."""

    format: Literal[1] = 1
    spec: CollectionSpec
    created_at: datetime
    ended_at: datetime | None = Field(default=None, description="when it was deleted")
    revision: int = Field(ge=1, description="grows with each change of items")
    changed_at: datetime = Field(description="the items")
    marks: tuple[str, ...] = Field(default=(), description="of the latest writes, newest last")
    complete: tuple[str, ...] = Field(
        default=(), description="columns in which no item lacks a vector, newest last"
    )
    making: str | None = Field(default=None, description="the column that is being filled")
    builder: str | None = Field(default=None, description="who makes columns and compacts")
    builder_until: float = Field(default=0.0, description="seconds since 1970; then another may")
    leftovers_since: datetime | None = Field(
        default=None, description="since when files have items that were removed or replaced"
    )

    def without(self, *columns: str | None) -> "Head":
        """Return the head without columns of vectors, so that nobody reads or fills them any more."""
        return self.model_copy(
            update={
                "complete": tuple(each for each in self.complete if each not in columns),
                "making": None if self.making in columns else self.making,
            }
        )


@dataclass(frozen=True)
class State:
    """A table at one moment, with its head. Reads of `dataset` see this state whatever is written later."""

    table: "CollectionTable"
    dataset: lance.LanceDataset
    head: Head

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of vectors, also of those that are being made."""
        return tuple(name for name in self.dataset.schema.names if is_vectors(name))

    def is_latest(self) -> bool:
        """Whether the table has not changed since."""
        with reading(self.table.uri):
            return bool(self.dataset.latest_version == self.dataset.version)

    @cached_property
    def indexes(self) -> Mapping[str, frozenset[int]]:
        """The fragments that its indexes have, by their names; each has the name of its column."""
        return {
            index.name: frozenset(place for part in index.segments for place in part.fragment_ids)
            for index in self.dataset.describe_indices()
        }

    @cached_property
    def rows(self) -> int:
        """The number of items."""
        return self.count(ITEMS)

    def count(self, wanted: str | None) -> int:
        """Return the number of rows for which this SQL holds; None: of all. Raises as `reading` does."""
        with reading(self.table.uri):
            return int(self.dataset.count_rows(wanted))

    def scan(self, **how: Any) -> pa.Table:
        """Return rows as `lance.LanceDataset.scanner` finds them. Raises StorageUnavailable, InvalidVersion."""
        with reading(self.table.uri):
            return self.dataset.scanner(**how).to_table()


def is_conflict(error: OSError) -> bool:
    """Whether a commit was refused because another one came first."""
    return isinstance(error, CommitConflictError) or "commit conflict" in str(error)


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Translate errors of Lance that are raised in the block, see `store_error`."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise store_error(error, uri) from error


def store_error(error: Exception, uri: str) -> WorkerError:
    """Return StorageUnavailable, or InvalidVersion for stored files that are missing or cannot be read.

    Lance raises ValueError for both. The message of the latter is without the address of the store.
    """
    if isinstance(error, OSError) or "Generic S3 error" in str(error):
        return StorageUnavailable(str(error))
    reason = re.sub(r", /\S+\.rs:\d+:\d+|\S*collections/[^/]+/\d+\.lance/?", "", str(error))
    return InvalidVersion(f"{_place(uri)} cannot be read: {reason}")


def _place(uri: str) -> str:
    """Return the key of a table in its store."""
    return "/".join(uri.split("/")[-3:])


def is_vectors(column: str) -> bool:
    """Whether a column of this name has vectors."""
    return column.startswith(VECTORS)


@dataclass(frozen=True)
class CollectionTable:
    """One collection in a folder or bucket. Used from any thread and process; all methods block.

    `number`: grows with each collection of the same name. `session`: the caches that the tables of a process share.
    Any method may raise StorageUnavailable, and InvalidVersion for a table that is damaged.
    """

    uri: str
    number: int
    options: Mapping[str, str] = field(default_factory=dict, compare=False)
    session: lance.Session | None = field(default=None, compare=False)

    def create(self, spec: CollectionSpec, revision: int = 1) -> State:
        """Create the table. Raises ObjectExists."""
        now = datetime.now(UTC)
        head = Head(spec=spec, created_at=now, changed_at=now, revision=revision)
        rows = _batch(_schema(spec.feature_type), [], head, lambda *_: None, _place(self.uri))
        try:
            lance.write_dataset(
                rows,
                self.uri,
                mode="create",
                enable_stable_row_ids=True,
                storage_options=dict(self.options),
            )
        except OSError as error:
            if "already exists" in str(error) or is_conflict(error):
                raise ObjectExists(f"{self.uri} exists") from error
            raise StorageUnavailable(str(error)) from error
        return self.read()

    def read(self) -> State:
        """Return the latest state. Raises NoCollection where there is no table."""
        try:
            dataset = lance.dataset(
                self.uri, storage_options=dict(self.options), session=self.session
            )
            found = dataset.to_table(columns=[*ITEM, CHECKSUMS], filter=f"id = {quoted(HEAD_ID)}")
        except (OSError, ValueError) as error:
            if "was not found" in str(error):
                raise NoCollection(f"there is no table at {self.uri}") from error
            raise store_error(error, self.uri) from error
        if found.num_rows != 1:
            raise InvalidVersion(f"{_place(self.uri)} has {found.num_rows} head rows")
        check_rows(found.to_pylist(), self.uri)
        try:
            head = Head.model_validate_json(found.column("payload")[0].as_py())
        except ValidationError as error:
            raise InvalidVersion(
                f"{_place(self.uri)} has a head that cannot be read: {error}"
            ) from error
        return State(self, dataset, head)

    def write(
        self,
        rows: Sequence[Row],
        embed: Embed,
        mark: str | None = None,
        replaced: Mapping[str, float] = NOTHING,
    ) -> int:
        """Add, replace and remove items, as one change; return the revision that has it.

        Of parents that were `replaced` from some second on, the parts since then are removed, but for those that
        are written. Where a write with this mark was applied before, nothing is written. Raises NoCollection, CollectionBusy.
        """
        ranges = {name for row in rows for name in PayloadTerms(row.payload).values}

        def change(head: Head) -> Head | None:
            if mark is not None and mark in head.marks:
                return None
            return head.model_copy(
                update={
                    "revision": head.revision + 1,
                    "changed_at": datetime.now(UTC),
                    "marks": (*head.marks, mark)[-_KEPT_MARKS:] if mark else head.marks,
                }
            )

        return self.update(change, rows, embed, ranges, replaced).revision

    def update(
        self,
        change: Callable[[Head], Head | None],
        rows: Sequence[Row] = (),
        embed: Embed = lambda *_: None,
        ranges: Collection[str] = (),
        replaced: Mapping[str, float] = NOTHING,
    ) -> Head:
        """Write rows, and the head as `change` returns it; None from it: nothing is written. Returns the latest head.

        Planned again on the next state where another write came first. Raises NoCollection, CollectionBusy.
        """
        for _ in range(_ATTEMPTS):
            state = self.read()
            if state.head.ended_at is not None:
                raise NoCollection(f"{self.uri} was deleted")
            head = change(state.head)
            if head is None:
                return state.head
            assert head.spec == state.head.spec
            assert head.revision >= state.head.revision
            if not self._add_ranges(state, ranges):
                try:
                    every = [*rows, *_other_parts(state, replaced, rows)]
                    rows_and_head = _batch(
                        state.dataset.schema, every, head, embed, _place(self.uri)
                    )
                except VersionGone as gone:
                    self.update(methodcaller("without", gone.column))
                    continue
                changed = self._commit(state, rows_and_head)
                if changed and head.leftovers_since is None:
                    since = {"leftovers_since": datetime.now(UTC)}
                    self.update(methodcaller("model_copy", update=since))
                if changed is not None:
                    return head
            time.sleep(random.uniform(0, _LONGEST_PAUSE_SECONDS))  # noqa: S311
        raise CollectionBusy(f"{self.uri}: other writers were first {_ATTEMPTS} times")

    def end(self, mark: str | None = None) -> Head:
        """End the collection: later writes raise NoCollection. Raises it where it has ended."""
        now = datetime.now(UTC)
        marks = () if mark is None else (mark,)
        return self.update(
            lambda head: head.model_copy(update={"ended_at": now, "marks": head.marks + marks})
        )

    def _commit(self, state: State, rows_and_head: pa.Table) -> int | None:
        """Return the number of items that were replaced or removed; None: another head was written since this state."""
        merge = state.dataset.merge_insert("id").when_matched_update_all()
        try:
            planned, done = merge.when_not_matched_insert_all().execute_uncommitted(rows_and_head)
            lance.LanceDataset.commit(self.uri, planned, storage_options=dict(self.options))
        except OSError as error:
            if is_conflict(error):
                return None
            raise StorageUnavailable(str(error)) from error
        assert done["num_updated_rows"] >= 1, "the head was not written"
        return int(done["num_updated_rows"]) - 1  # Without the head.

    def _add_ranges(self, state: State, wanted: Collection[str]) -> bool:
        """Add columns of fields that the table has not had; whether there were any."""
        present = {name for name in state.dataset.schema.names if name.startswith(RANGES)}
        missing = sorted(set(wanted) - present)[: max(0, _MOST_RANGES - len(present))]
        if missing:
            try:
                state.dataset.add_columns([pa.field(name, range_type(name)) for name in missing])
            except (OSError, ValueError) as error:
                # Added by another writer meanwhile, or other columns were: planned again.
                logger.debug("%s: columns of fields: %s", self.uri, error)
        return bool(missing)


def _other_parts(state: State, replaced: Mapping[str, float], rows: Sequence[Row]) -> Iterator[Row]:
    """Yield removals of the parts of what was replaced that are not among the rows."""
    if not replaced:
        return
    written = {row.id for row in rows}
    wanted = f"parent IN ({', '.join(map(quoted, replaced))})"
    for each in state.scan(columns=["id", "parent", "start"], filter=wanted).to_pylist():
        if each["id"] not in written and (each["start"] or 0.0) >= replaced[each["parent"]]:
            yield removal(each["id"])


def _schema(feature_type: FloatType) -> pa.Schema:
    number = pa.type_for_alias(feature_type)
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("modality", pa.string()),
            pa.field("feature", pa.list_(number)),
            pa.field("payload", pa.string()),
            pa.field("terms", pa.list_(pa.string())),
            pa.field("text", pa.string()),
            pa.field("parent", pa.string()),
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
            pa.field("source", pa.string()),
            pa.field("thumbnail", pa.binary()),
            pa.field(CHECKSUMS, pa.list_(pa.uint32(), 1 + len(_CHECKED_APART))),
        ]
    )


_AS_GIVEN = ("parent", "start", "end", "source", "thumbnail")


def _batch(
    schema: pa.Schema, rows: Sequence[Row], head: Head, embed: Embed, place: str
) -> pa.Table:
    """Return rows as they are stored, and the head, with a vector for each column of vectors."""
    assert all(row.id != HEAD_ID for row in rows), "an item would replace the head"
    assert len({row.id for row in rows}) == len(rows), "an item is written twice"
    payloads = [None if row.feature_F is None else row.payload for row in rows]
    terms = [PayloadTerms(payload) for payload in payloads]
    columns: dict[str, list[Any] | pa.Array] = {
        "id": [*(row.id for row in rows), HEAD_ID],
        "modality": [*(None if row.feature_F is None else row.modality for row in rows), None],
        "feature": _features(rows, schema.field("feature").type.value_type),
        "payload": [*payloads, head.model_dump_json()],
        # Not null where there is no payload: `NOT` of a comparison with null is null, and finds nothing.
        "terms": [*(each.terms for each in terms), None],
        "text": [*(text_of(payload, head.spec.text_fields) for payload in payloads), None],
        **{name: [*(getattr(row, name) for row in rows), None] for name in _AS_GIVEN},
    }
    for name in set(schema.names) - {*columns, CHECKSUMS}:
        if name in {*head.complete, head.making}:
            columns[name] = _vectors(name, schema.field(name).type, rows, embed)
        elif is_vectors(name):
            # Of an abandoned build, or about to be dropped.
            columns[name] = [None] * (len(rows) + 1)
        else:
            columns[name] = [*(each.values.get(name) for each in terms), None]
    for name in ("start", "end"):  # As they are read: the JSON of 3 is not that of 3.0.
        columns[name] = [None if each is None else float(each) for each in columns[name]]
    read = zip(*(columns[name] for name in (*ITEM, *_CHECKED_APART)), strict=True)
    columns[CHECKSUMS] = [
        [_checksum(value, place) for value in (each[: len(ITEM)], *each[len(ITEM) :])]
        for each in read
    ]
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _features(rows: Sequence[Row], number: pa.DataType) -> list[Any]:
    """Features of unit length in float16: only their direction matters, and lengths could exceed float16."""
    stored: list[Any] = [*(row.feature_F for row in rows), None]
    if number != pa.float16():
        return stored
    return [
        None if each is None else (each / np.linalg.norm(each)).astype(np.float16)
        for each in stored
    ]


def _checksum(
    value: Sequence[str | float | None] | str | bytes | np.ndarray | None, place: str
) -> int:
    """Return the CRC-32 of the place, and of a feature or a thumbnail, or of the JSON of anything else."""
    start = zlib.crc32(place.encode())
    if isinstance(value, np.ndarray):
        return zlib.crc32(np.ascontiguousarray(value).data, start)
    return zlib.crc32(value if isinstance(value, bytes) else json.dumps(value).encode(), start)


def check_rows(rows: Sequence[dict[str, Any]], uri: str) -> None:
    """Remove the checksums of rows, each with all of `ITEM`, and compare them. Raises InvalidVersion."""
    for row in rows:
        item, _, *apart = row.pop(CHECKSUMS) or [None] * (1 + len(_CHECKED_APART))
        is_right = item == _checksum([row[name] for name in ITEM], _place(uri)) and all(
            right == _checksum(row[name], _place(uri))
            for name, right in zip(_CHECKED_APART[1:], apart, strict=True)
            if name in row
        )
        if not is_right:
            raise _damaged(row["id"], uri)


def check_features(rows: pa.RecordBatch, uri: str) -> None:
    """Compare the features of rows with their checksums. Raises InvalidVersion."""
    right_B = rows[CHECKSUMS].flatten().to_numpy().reshape(rows.num_rows, -1)[:, 1]
    values = rows["feature"].flatten().to_numpy(zero_copy_only=False)
    ends_B = np.cumsum(rows["feature"].value_lengths().to_numpy())
    for at, feature_F in enumerate(np.split(values, ends_B[:-1])):
        if _checksum(feature_F, _place(uri)) != right_B[at]:
            raise _damaged(rows["id"][at].as_py(), uri)


def _damaged(item: str, uri: str) -> InvalidVersion:
    what = f"item {item!r}" if item else "its head"
    return InvalidVersion(
        f"{_place(uri)} cannot be read: {what} is not as it was written (its checksum differs); "
        + ("write the item again, or remove it" if item else "restore it from a backup")
    )


def _vectors(name: str, kind: pa.DataType, rows: Sequence[Row], embed: Embed) -> pa.Array:
    values_BN = np.zeros((len(rows) + 1, kind.list_size), kind.value_type.to_pandas_dtype())
    missing_B = np.ones(len(rows) + 1, bool)
    features: dict[str, dict[int, Float32Array]] = defaultdict(dict)
    for at, row in enumerate(rows):
        if row.feature_F is not None:
            assert row.feature_F.ndim == 1
            features[row.modality][at] = row.feature_F
    for modality, by_place in features.items():
        vectors_BE = embed(name, modality, np.stack([*by_place.values()]))
        if vectors_BE is not None:
            assert len(vectors_BE) == len(by_place)
            values_BN[[*by_place]] = encoded(vectors_BE, kind)
            missing_B[[*by_place]] = False
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values_BN.ravel()), kind.list_size, mask=pa.array(missing_B)
    )


def column_type(vector_type: VectorType, width: int) -> pa.DataType:
    """Return the type of a column of vectors."""
    if vector_type == "bit":
        return pa.list_(pa.uint8(), -(-width // 8))
    return pa.list_(pa.type_for_alias(vector_type), width)


def is_bits(kind: pa.DataType) -> bool:
    """Whether a column of this type has bits."""
    return bool(kind.value_type == pa.uint8())


def encoded(vectors_BE: Float32Array, kind: pa.DataType) -> np.ndarray:
    """Return vectors as a column of this type has them: floats, or bits, eight to a byte (B × ⌈E / 8⌉)."""
    if is_bits(kind):
        return np.packbits(signs(vectors_BE), axis=1)
    return vectors_BE.astype(kind.value_type.to_pandas_dtype())


def signs(vectors_BE: Float32Array) -> np.ndarray:
    """Return which numbers of the vectors are positive after a rotation (B × E, bool).

    The share of bits in which two vectors differ is their angle / π, expected over rotations (Charikar, STOC 2002).
    Without one, axes along which items hardly differ would count as much as the others.
    """
    positive_BE: np.ndarray = vectors_BE @ _rotation(vectors_BE.shape[1]) > 0
    return positive_BE


@cache
def _rotation(width: int) -> Float32Array:
    """An orthonormal matrix (E × E), the same in every process. Cosine transforms need no seed, but their errors are as
    much as 15 % off those of a random one, which are predicted (workers/nullspace/compression.py)."""
    random_EE = torch.randn(
        width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    made: Float32Array = torch.linalg.qr(random_EE).Q.float().numpy()
    return made
