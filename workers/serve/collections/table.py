"""A collection as one table of Lance: its items, their vectors by version, and a head row with its state.

Columns: `id`, `modality`, `feature` (a list: widths differ by modality), `payload` (JSON), `terms` and those of fields
(for filters: `terms.py`), and one of vectors for each version that serves or is being made (`columns.py`). A removed item keeps its id until
`purge`; all else of it is null.

**The head row** has the empty id, and the collection's state as its payload. Every change of items updates it in the
same commit. Lance refuses the second of two commits that update the same row, and only then: two inserts of the same
new id both succeed. So with the head row a change is applied to the state that it was planned on, or planned again.
That makes writes idempotent (a write looks for its mark in the head), and numbers revisions, which Lance's versions
cannot: compaction and indexes make versions too.

Shapes: B rows, F width of the raw feature, E width of the embeddings.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import lance
import numpy as np
import pyarrow as pa
from lance.commit import CommitConflictError
from pydantic import Field

from cmcl.contract.api.endpoint import FeatureType
from cmcl.contract.errors import InvalidVersion, ObjectExists, StorageUnavailable, WorkerError
from cmcl.contract.modality import Frozen
from workers.serve.collections.terms import RANGES, PayloadTerms, quoted, range_type
from workers.serve.versions.loading import Float32Array

logger = logging.getLogger(__name__)

HEAD_ID = ""
ITEMS = "modality IS NOT NULL"
VECTORS = "vectors_"
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


class Row(NamedTuple):
    """An item to write. `feature_F` None: to remove. `payload`: JSON, or None."""

    id: str
    modality: str
    feature_F: Float32Array | None
    payload: str | None


class Head(Frozen):
    """The state of a collection, in its head row."""

    revision: int = Field(ge=1, description="grows with each change of items")
    changed: float = Field(default=0.0, description="of items, seconds since 1970")
    marks: tuple[str, ...] = Field(default=(), description="of the latest writes, newest last")
    complete: tuple[str, ...] = Field(
        default=(), description="columns in which no item lacks a vector, newest last"
    )
    making: str | None = Field(default=None, description="the column that is being filled")
    builder: str | None = Field(default=None, description="who makes the next column")
    builder_until: float = Field(default=0.0, description="seconds since 1970; then another may")
    deleted: bool = False


@dataclass(frozen=True)
class State:
    """The table at one moment, with its head. Reads of `dataset` see this state whatever is written later."""

    dataset: lance.LanceDataset
    head: Head

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of vectors, also of those that are being made."""
        return tuple(name for name in self.dataset.schema.names if is_vectors(name))

    def indexes(self) -> set[str]:
        """Return the names of its indexes; one of vectors has the name of its column."""
        return {each.name for each in self.dataset.describe_indices()}

    def rows(self, modality: str | None = None) -> int:
        """Return the number of items, of one modality or of all."""
        wanted = ITEMS if modality is None else f"modality = {quoted(modality)}"
        return int(self.dataset.count_rows(wanted))


def is_vectors(column: str) -> bool:
    """Whether a column of this name has vectors."""
    return column.startswith(VECTORS)


class CollectionTable:
    """One collection in a folder or bucket. Used from any thread and process; all methods block.

    Any may raise StorageUnavailable, and InvalidVersion for a table without a head.
    """

    def __init__(self, uri: str, options: Mapping[str, str] | None = None) -> None:
        self.uri = uri
        self._options = dict(options) if options else None

    def create(self, feature_type: FeatureType, revision: int = 1) -> State:
        """Create the table. Raises ObjectExists."""
        schema, head = _schema(feature_type), Head(revision=revision, changed=time.time())
        rows = _batch(schema, [], head, lambda *_: None)
        try:
            made = lance.write_dataset(
                rows,
                self.uri,
                mode="create",
                enable_stable_row_ids=True,
                storage_options=self._options,
            )
        except OSError as error:
            if "already exists" in str(error):
                raise ObjectExists(f"{self.uri} exists") from error
            raise StorageUnavailable(str(error)) from error
        return State(made, head)

    def read(self) -> State:
        """Return the latest state. Raises NoCollection where there is no table."""
        try:
            dataset = lance.dataset(self.uri, storage_options=self._options)
        except ValueError as error:
            raise NoCollection(f"there is no table at {self.uri}") from error
        except OSError as error:
            raise StorageUnavailable(str(error)) from error
        return State(dataset, _head_of(dataset))

    def write(self, rows: Sequence[Row], embed: Embed, mark: str | None = None) -> int:
        """Add, replace and remove items, as one change; return the revision that has it.

        Where a write with this mark was applied before, nothing is written. Raises NoCollection, CollectionBusy.
        """
        terms = [PayloadTerms(row.payload) for row in rows]
        ranges = {column for each in terms for column in each.values}
        for state in self._attempts():
            if mark is not None and mark in state.head.marks:
                return state.head.revision
            if self._add_ranges(state, ranges):
                continue
            marks = (*state.head.marks, mark)[-_KEPT_MARKS:] if mark else state.head.marks
            head = state.head.model_copy(
                update={
                    "revision": state.head.revision + 1,
                    "changed": time.time(),
                    "marks": marks,
                }
            )
            if self.commit(state, head, rows, embed):
                return head.revision
        raise CollectionBusy(f"{self.uri}: other writers were first {_ATTEMPTS} times")

    def update(self, change: Callable[[State], Head | None]) -> Head | None:
        """Change the head alone, by the state that `change` gets; None from it: there is nothing to change."""
        for state in self._attempts():
            head = change(state)
            if head is None or self.commit(state, head):
                return head
        raise CollectionBusy(f"{self.uri}: other writers were first {_ATTEMPTS} times")

    def delete(self) -> Head:
        """End the collection: later writes raise NoCollection. Returns its last head. Idempotent."""
        try:
            self.update(lambda state: state.head.model_copy(update={"deleted": True}))
        except NoCollection:
            pass  # By a request that died before it said so.
        return self.read().head

    def commit(
        self, state: State, head: Head, rows: Sequence[Row] = (), embed: Embed = lambda *_: None
    ) -> bool:
        """Write head and rows if no other head was written since this state. False: one was."""
        batch = _batch(state.dataset.schema, rows, head, embed)
        merge = state.dataset.merge_insert("id").when_matched_update_all()
        try:
            planned, _ = merge.when_not_matched_insert_all().execute_uncommitted(batch)
            lance.LanceDataset.commit(self.uri, planned, storage_options=self._options)
        except CommitConflictError:
            return False
        except OSError as error:
            raise StorageUnavailable(str(error)) from error
        return True

    def purge(self) -> None:
        """Remove what is left of removed items. A concurrent write of the same id wins."""
        self.read().dataset.delete(f"modality IS NULL AND id != {quoted(HEAD_ID)}")

    def _add_ranges(self, state: State, wanted: set[str]) -> bool:
        """Add columns of fields that the table has not had; whether there were any."""
        present = {name for name in state.dataset.schema.names if name.startswith(RANGES)}
        missing = sorted(wanted - present)[: max(0, _MOST_RANGES - len(present))]
        if missing:
            try:
                state.dataset.add_columns([pa.field(name, range_type(name)) for name in missing])
            except (CommitConflictError, OSError, ValueError) as error:
                logger.debug("%s: columns of fields: %s", self.uri, error)
        return bool(missing)

    def _attempts(self):  # type: ignore[no-untyped-def]
        for _ in range(_ATTEMPTS):
            state = self.read()
            if state.head.deleted:
                raise NoCollection(f"{self.uri} was deleted")
            yield state
            time.sleep(random.uniform(0, _LONGEST_PAUSE_SECONDS))  # noqa: S311


def _head_of(dataset: lance.LanceDataset) -> Head:
    found = dataset.to_table(columns=["payload"], filter=f"id = {quoted(HEAD_ID)}")
    if found.num_rows != 1:
        raise InvalidVersion(f"{dataset.uri} has {found.num_rows} head rows")
    return Head.model_validate_json(found.column("payload")[0].as_py())


def _schema(feature_type: FeatureType) -> pa.Schema:
    number = pa.float16() if feature_type == "float16" else pa.float32()
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("modality", pa.string()),
            pa.field("feature", pa.list_(number)),
            pa.field("payload", pa.string()),
            pa.field("terms", pa.list_(pa.string())),
        ]
    )


def _batch(schema: pa.Schema, rows: Sequence[Row], head: Head, embed: Embed) -> pa.Table:
    """Return rows as they are stored, and the head, with a vector for each column of vectors."""
    payloads = [None if row.feature_F is None else row.payload for row in rows]
    terms = [PayloadTerms(payload) for payload in payloads]
    columns: dict[str, object] = {
        "id": [*(row.id for row in rows), HEAD_ID],
        "modality": [*(None if row.feature_F is None else row.modality for row in rows), None],
        "feature": _features(rows, schema.field("feature").type.value_type),
        "payload": [*payloads, head.model_dump_json()],
        "terms": [*(each.terms for each in terms), None],
    }
    for name in set(schema.names) - set(columns):
        if is_vectors(name):
            columns[name] = _vectors(name, schema.field(name).type, rows, embed)
        else:
            columns[name] = [*(each.values.get(name) for each in terms), None]
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _features(rows: Sequence[Row], number: pa.DataType) -> list[np.ndarray | None]:
    """Features of unit length in float16: only their direction matters, and lengths could exceed float16."""
    present = [row.feature_F for row in rows]
    if number == pa.float16():
        halved = [
            None if f_F is None else (f_F / np.linalg.norm(f_F)).astype(np.float16)
            for f_F in present
        ]
        return [*halved, None]
    return [*present, None]


def _vectors(name: str, kind: pa.DataType, rows: Sequence[Row], embed: Embed) -> pa.Array:
    values_BE = np.zeros((len(rows) + 1, kind.list_size), np.float32)
    missing_B = np.ones(len(rows) + 1, bool)
    for modality in {row.modality for row in rows if row.feature_F is not None}:
        places = [
            at
            for at, row in enumerate(rows)
            if row.modality == modality and row.feature_F is not None
        ]
        vectors_BE = embed(name, modality, np.stack([rows[at].feature_F for at in places]))
        if vectors_BE is not None:
            values_BE[places], missing_B[places] = vectors_BE, False
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values_BE.ravel()), kind.list_size, mask=pa.array(missing_B)
    )
