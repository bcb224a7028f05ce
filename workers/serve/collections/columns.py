"""Columns of vectors: one for each version of the model that serves, or is being made.

A new version's column is added empty, which changes metadata alone, and filled one fragment of the table at a time.
Each is a commit of its own: Lance refuses it where an item of the fragment was written meanwhile, and it is made
again. (`add_columns` with a function is one commit of the whole table, which any write meanwhile refuses.) Writers
compute a vector for each column that they see. So what is left to fill shrinks, whatever is written.

The head names the column before it is filled. A write that was planned before that is refused and planned again, so
every later one sees the column. Once no item lacks a vector, none ever will: then the head lists the column as
complete. Readers use complete columns only.

Shapes: B rows, F width of the raw feature, E width of the embeddings.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import lance
import numpy as np
import pyarrow as pa
from lance import LanceOperation
from lance.commit import CommitConflictError

from workers.serve.collections.table import VECTORS, CollectionTable, Embed, Head, State
from workers.serve.collections.terms import quoted
from workers.serve.versions.loading import Float32Array, ServedVersion

# With fewer items all are compared.
INDEX_FROM_ROWS = 5_000
# RaBitQ needs no training but that of the partitions, and a width that is a multiple of 8.
_BITS, _BYTES, _BITS_MULTIPLE = "IVF_RQ", "IVF_SQ", 8
# The one that serves, and the one before for a rollback.
_KEPT_COLUMNS = 2
_LEASE_SECONDS = 60.0
_ROWS_AT_ONCE = 4096
# Each costs a query a quarter of a millisecond.
_MOST_FRAGMENTS = 10
_FRAGMENT_ROWS = 65_536


def column_of(version: ServedVersion) -> str:
    """Return the name of its column. A model can be deleted and created again: its numbers begin again."""
    return f"{VECTORS}{version.number}_{int(version.created_at.timestamp())}"


@dataclass(frozen=True)
class Target:
    """A version whose vectors are wanted. `learned`: modalities that it embeds; items of others have no vector."""

    column: str
    width: int
    learned: frozenset[str]


class ColumnBuilder:
    """Makes columns of one collection. One process at a time holds its lease; two would only do work twice.

    `name`: of this process. Used from one thread.
    """

    def __init__(self, table: CollectionTable, name: str) -> None:
        self._table = table
        self._name = name

    def claim(self) -> bool:
        """Take or extend the lease; False where another process has it."""

        def change(state: State) -> Head | None:
            head, now = state.head, time.time()
            if head.builder not in (None, self._name) and now < head.builder_until:
                return None
            lease = {"builder": self._name, "builder_until": now + _LEASE_SECONDS}
            return head.model_copy(update=lease)

        return self._table.update(change) is not None

    def build(self, target: Target, embed: Embed) -> Iterator[float]:
        """Make a column complete; yield the share that is filled. Can be abandoned, and begun again by any process."""
        self._add(target)
        yield from self._fill(target, embed)
        self._index(target)
        self._table.update(lambda state: _with_complete(state.head, target.column))

    def drop_old(self, keep: Collection[str] = ()) -> None:
        """Drop columns that neither serve nor are kept for a rollback."""
        state = self._table.read()
        wanted = {*state.head.complete[-_KEPT_COLUMNS:], *keep}
        complete = tuple(each for each in state.head.complete if each in wanted)
        if complete != state.head.complete:
            # First out of the head, so that no reader chooses one that is gone.
            self._table.update(
                lambda now: now.head.model_copy(
                    update={"complete": tuple(c for c in now.head.complete if c in wanted)}
                )
            )
        old = [each for each in self._table.read().columns if each not in wanted]
        if old:
            _again(lambda: self._table.read().dataset.drop_columns(old))

    def tidy(self) -> None:
        """Merge small fragments, and index what was written since."""
        dataset = self._table.read().dataset
        if len(dataset.get_fragments()) <= _MOST_FRAGMENTS:
            return
        self._table.purge()
        _again(
            lambda: self._table.read().dataset.optimize.compact_files(
                target_rows_per_fragment=_FRAGMENT_ROWS
            )
        )
        _again(lambda: self._table.read().dataset.optimize.optimize_indices())

    def _add(self, target: Target) -> None:
        field = pa.field(target.column, pa.list_(pa.float32(), target.width))

        def add() -> None:
            state = self._table.read()
            if target.column not in state.columns:
                state.dataset.add_columns(field)

        _again(add)
        self._table.update(lambda state: state.head.model_copy(update={"making": target.column}))

    def _fill(self, target: Target, embed: Embed) -> Iterator[float]:
        while True:
            state = self._table.read()
            # Not `LanceFragment.count_rows`: with a filter it holds the interpreter, and searches beside it deadlock.
            places = state.dataset.to_table(
                columns=[], filter=lacking(target), with_row_address=True
            )["_rowaddr"].to_numpy()
            if not len(places):
                return
            yield 1 - len(places) / max(state.rows(), 1)
            fragment = state.dataset.get_fragment(int(places[0]) >> 32)
            self._fill_fragment(state, fragment, target, embed)

    def _fill_fragment(
        self, state: State, fragment: lance.LanceFragment, target: Target, embed: Embed
    ) -> None:
        schema = pa.schema(
            [("_rowid", pa.uint64()), (target.column, pa.list_(pa.float32(), target.width))]
        )
        # Another handle to read from: one cannot be read while it is updated.
        source = state.dataset.get_fragment(fragment.fragment_id)
        made = pa.RecordBatchReader.from_batches(schema, _vectors(source, target, embed, schema))
        changed, fields = fragment.update_columns(made, "_rowid", "_rowid")
        operation = LanceOperation.Update(updated_fragments=[changed], fields_modified=fields)
        try:
            lance.LanceDataset.commit(state.dataset, operation, read_version=state.dataset.version)
        except CommitConflictError:
            return  # An item of it was written meanwhile: the next round does it again.

    def _index(self, target: Target) -> None:
        state = self._table.read()
        rows = state.dataset.count_rows(f"{target.column} IS NOT NULL")
        if rows < INDEX_FROM_ROWS or target.column in state.indexes():
            return
        partitions = max(1, int(math.sqrt(rows) / 2))
        _again(
            lambda: self._table.read().dataset.create_index(
                target.column,
                _BYTES if target.width % _BITS_MULTIPLE else _BITS,
                name=target.column,
                metric="cosine",
                num_partitions=partitions,
            )
        )


def _with_complete(head: Head, column: str) -> Head:
    others = tuple(each for each in head.complete if each != column)
    return head.model_copy(update={"complete": (*others, column), "making": None})


def lacking(target: Target) -> str:
    """Return the SQL of items that have no vector and should have one."""
    learned = ", ".join(map(quoted, sorted(target.learned)))
    return f"{target.column} IS NULL AND modality IN ({learned})"


def _vectors(
    fragment: lance.LanceFragment, target: Target, embed: Embed, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    for modality in sorted(target.learned):
        batches = fragment.to_batches(
            columns=["feature"],
            filter=f"modality = {quoted(modality)}",
            batch_size=_ROWS_AT_ONCE,
            with_row_id=True,
        )
        for batch in batches:
            if batch.num_rows:
                vectors_BE = embed(target.column, modality, features_matrix(batch["feature"]))
                if vectors_BE is None:
                    raise ValueError(f"{target.column} embeds no {modality}")
                vectors = pa.FixedSizeListArray.from_arrays(
                    pa.array(vectors_BE.ravel()), target.width
                )
                yield pa.record_batch([batch["_rowid"], vectors], schema=schema)


def features_matrix(column: pa.ListArray) -> Float32Array:
    """Return features of one modality as B x F."""
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.array(values.reshape(len(column), -1), np.float32)


def _again(do: Callable[[], object], attempts: int = 20) -> None:
    """Do it until no write came between. Raises CommitConflictError after so many attempts."""
    for left in reversed(range(attempts)):
        try:
            do()
            return
        except CommitConflictError:
            if not left:
                raise
