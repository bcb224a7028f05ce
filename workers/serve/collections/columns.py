"""Columns of vectors: one for each version of the model that serves, or is being made.

A new version's column is added empty, which changes metadata alone, and filled one fragment of the table at a time.
Each is a commit of its own: Lance refuses it where an item of the fragment was written meanwhile, and it is made
again. (`add_columns` with a function is one commit of the whole table, which any write meanwhile refuses.) Writers
compute a vector for each column that the head names. So what is left to fill shrinks, whatever is written.

The head names the column before it is filled. A write that was planned before that is refused and planned again, so
every later one sees the column. Once no item lacks a vector, none ever will: then the head lists the column as
complete. Readers use complete columns only.

Shapes: B rows, F width of the raw feature, E width of the embeddings.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Literal

import lance
import numpy as np
import pyarrow as pa
import torch
from lance import LanceOperation

from cmcl.contract.errors import InvalidVersion, ObjectNotFound
from workers.serve.collections.filters import is_among, quoted
from workers.serve.collections.table import (
    CHECKSUMS,
    HEAD_ID,
    VECTORS,
    CollectionBusy,
    CollectionSpec,
    CollectionTable,
    Embed,
    Head,
    State,
    VersionGone,
    check_features,
    column_type,
    encoded,
    is_bits,
    is_conflict,
    is_vectors,
    reading,
)
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import Float32Array, ServedVersion, truncated

# With fewer items all are compared.
INDEX_FROM_ROWS = 5_000
_INDEXES: Mapping[str, Literal["BITMAP", "BTREE", "INVERTED", "LABEL_LIST"]] = MappingProxyType(
    {"id": "BTREE", "modality": "BITMAP", "terms": "LABEL_LIST", "text": "INVERTED"}
)
# RaBitQ needs no training but that of the partitions, and a width that is a multiple of 8.
_BITS, _BYTES, _BITS_MULTIPLE = "IVF_RQ", "IVF_SQ", 8
# Partitions of an index, for any number of rows. Codes are so small that a query looks through all of them: with sqrt(rows) / 2 partitions,
# ranking them took longer than that, and with 60 of them 12 of 400 nearest items were missed.
PARTITIONS = 16
# The one that serves, and the one before for a rollback.
_KEPT_COLUMNS = 2
_LEASE_SECONDS = 60.0
_ROWS_AT_ONCE = 4096
# Of small ones. Each costs a query a quarter of a millisecond.
_MOST_FRAGMENTS = 10
_FRAGMENT_ROWS = 65_536
# Rows that no index has yet, which every query compares: 0.8 ms for a thousand.
_MOST_COMPARED = 4_096
# Fragments are rewritten without deleted rows where these are such a share, and all of them after a while: every
# fragment has had a head.
_DELETED_SHARE = 0.1
_KEPT_LEFTOVERS = timedelta(hours=12)
_ATTEMPTS = 20
_PARTS = 1000

# Reads a version of a model from the store, or from memory: model and number.
VersionOf = Callable[[str, int], ServedVersion]


def column_of(version: ServedVersion) -> str:
    """Return the name of its column. A model can be deleted and created again: its numbers begin again."""
    return f"{VECTORS}{version.number}_{int(version.created_at.timestamp())}"


def vector_width(spec: CollectionSpec, version: ServedVersion) -> int:
    """Return how many numbers of a version's embeddings a collection keeps."""
    return min(spec.dimensions or version.spec.width, version.spec.width)


class Versions:
    """The versions of a collection's model by the names of their columns, and vectors of features."""

    def __init__(self, spec: CollectionSpec, live: LiveVersions, version_of: VersionOf) -> None:
        self._spec = spec
        self._live = live
        self._version_of = version_of
        self._known: dict[str, ServedVersion] = {}

    def live(self) -> ServedVersion | None:
        """Return the live version of the model."""
        found = self._live.get(self._spec.model)
        if found is None:
            return None
        self._known[column_of(found.version)] = found.version
        return found.version

    def of(self, column: str) -> ServedVersion:
        """Return the version of a column. Raises VersionGone."""
        if column not in self._known:
            try:
                version = self._version_of(self._spec.model, int(column.split("_")[1]))
            except ObjectNotFound as error:
                raise VersionGone(column) from error
            self._known[column_of(version)] = version
        if column not in self._known:  # The model was deleted, and its name is used again.
            raise VersionGone(column)
        return self._known[column]

    def embed(self, column: str, modality: str, features_BF: Float32Array) -> Float32Array | None:
        """Return unit embeddings (B x E), as long as the collection's vectors; None for a modality that the version
        has not learned. Raises VersionGone, InvalidVersion.
        """
        version = self.of(column)
        assert version.model == self._spec.model
        assert column_of(version) == column
        width = version.spec.widths.get(modality)
        # A version from before the model had the modality is still searched, while vectors of the next one are made.
        if width is None or modality in version.not_learned:
            return None
        if width != features_BF.shape[1]:
            raise InvalidVersion(
                f"features of modality {modality!r} have width {features_BF.shape[1]}, {version.label} expects {width}"
            )
        made_BE: Float32Array = version.heads.embed(modality, torch.from_numpy(features_BF)).numpy()
        return truncated(made_BE, vector_width(self._spec, version))


class ColumnBuilder:
    """Makes columns of one collection, and compacts it. One process at a time holds its lease; two would only do work
    twice.

    `name`: of this process. Used from one thread.
    """

    def __init__(self, table: CollectionTable, name: str) -> None:
        self._table = table
        self._name = name

    def claim(self) -> bool:
        """Take the lease, or extend it once half of it is over; False where another process has it."""
        now = time.time()

        def change(head: Head) -> Head | None:
            left = 0.0 if head.builder is None else head.builder_until - now
            if left > (_LEASE_SECONDS / 2 if head.builder == self._name else 0):
                return None
            lease = {"builder": self._name, "builder_until": now + _LEASE_SECONDS}
            return head.model_copy(update=lease)

        return self._table.update(change).builder == self._name

    def build(self, version: ServedVersion, embed: Embed) -> Iterator[float]:
        """Make the column of a version complete; yield the share that is filled. Can be abandoned, and begun again by any
        process.
        """
        spec, column = self._table.read().head.spec, column_of(version)
        assert version.model == spec.model
        field = pa.field(column, column_type(spec.vector_type, vector_width(spec, version)))
        self._add(field)
        yield from self._fill(field, version.learned, embed)
        state = self._table.read()
        if column not in state.indexes and _can_be_indexed(state, column):
            self._index(column)

        def change(head: Head) -> Head:
            complete = (*head.without(column).complete, column)
            assert len(set(complete)) == len(complete)
            return head.model_copy(update={"complete": complete, "making": None})

        self._table.update(change)
        self._drop_old()

    def is_untidy(self, state: State) -> bool:
        """Whether searches would be faster once it is compacted and indexed, or items should leave the store."""
        sizes = {each.fragment_id: each.physical_rows for each in state.dataset.get_fragments()}
        small = sum(2 * size < _FRAGMENT_ROWS for size in sizes.values())
        # Of the ids, which every row has.
        indexed = state.indexes.get("id", sizes.keys())
        compared = sum(size for place, size in sizes.items() if place not in indexed)
        return (
            small > _MOST_FRAGMENTS
            or compared > _MOST_COMPARED
            or bool(_unindexed(state))
            or _has_leftovers(state.head)
        )

    def tidy(self) -> Iterator[None]:
        """Merge small fragments, and index what was written since. Yields between."""
        has_leftovers, begun = _has_leftovers(self._table.read().head), datetime.now(UTC)
        gone = f"modality IS NULL AND id != {quoted(HEAD_ID)}"
        self._again(lambda dataset: dataset.delete(gone))
        # The head moves to a fragment of its own, which is left out: every write changes it, and would refuse the rest.
        self._table.update(Head.model_copy)
        deleted_share = 0.0 if has_leftovers else _DELETED_SHARE
        self._again(partial(_compact, deleted_share=deleted_share))
        if has_leftovers:

            def change(head: Head) -> Head:
                since = begun if head.changed_at > begun else None  # Written meanwhile.
                return head.model_copy(update={"leftovers_since": since})

            self._table.update(change)
        yield
        for name in sorted(self._table.read().indexes):
            self._again(partial(_update_index, name))
            yield
        for column in sorted(_unindexed(self._table.read())):
            self._index(column)
            yield

    def _add(self, column: pa.Field) -> None:
        def add(dataset: lance.LanceDataset) -> None:
            if column.name not in dataset.schema.names:
                dataset.add_columns(column)

        self._again(add)
        self._table.update(lambda head: head.model_copy(update={"making": column.name}))

    def _fill(self, column: pa.Field, learned: Collection[str], embed: Embed) -> Iterator[float]:
        schema = pa.schema([("_rowid", pa.uint64()), column])
        # Items of other modalities have no vector.
        lacking = f"{column.name} IS NULL AND {is_among(learned)}"
        while True:
            state = self._table.read()
            # Not `LanceFragment.count_rows`: with a filter it holds the interpreter, and searches beside it deadlock.
            found = state.dataset.to_table(columns=[], filter=lacking, with_row_address=True)
            places = found["_rowaddr"].to_numpy()
            if not len(places):
                return
            assert len(places) <= state.rows
            yield 1 - len(places) / max(state.rows, 1)
            self._fill_fragment(state, int(places[0]) >> 32, schema, learned, embed)

    def _fill_fragment(
        self, state: State, place: int, schema: pa.Schema, learned: Collection[str], embed: Embed
    ) -> None:
        # Two handles: one cannot be read while it is updated.
        source, updated = (lance.LanceFragment(state.dataset, place) for _ in range(2))
        failed: list[Exception] = []

        def vectors() -> Iterator[pa.RecordBatch]:
            try:
                yield from _vectors(source, schema, learned, embed, self._table.uri)
            except Exception as error:
                failed.append(error)
                raise

        try:
            made = pa.RecordBatchReader.from_batches(schema, vectors())
            changed, fields = updated.update_columns(made, "_rowid", "_rowid")
        except Exception as error:
            # Lance raises one of its own for that of the vectors.
            if failed:
                raise failed[0] from error
            raise
        operation = LanceOperation.Update(updated_fragments=[changed], fields_modified=fields)
        try:
            lance.LanceDataset.commit(state.dataset, operation, read_version=state.dataset.version)
        except OSError as error:
            if not is_conflict(error):
                raise
            # An item of it was written since: the next round does it again.

    def _index(self, column: str) -> None:
        """Make the index of a column."""
        if not is_vectors(column):
            kind = _INDEXES[column]
            self._again(lambda dataset: dataset.create_scalar_index(column, kind, column))
            return
        state = self._table.read()
        kind = state.dataset.schema.field(column).type
        floats = _BYTES if kind.list_size % _BITS_MULTIPLE else _BITS
        self._again(
            lambda dataset: dataset.create_index(
                column,
                "IVF_FLAT" if is_bits(kind) else floats,
                name=column,
                metric="hamming" if is_bits(kind) else "cosine",
                num_partitions=PARTITIONS,
                replace=True,
            )
        )

    def _drop_old(self) -> None:
        """Drop columns that neither serve nor are kept for a rollback."""
        # First out of the head, so that no reader chooses one that is gone.
        head = self._table.update(lambda head: head.without(*head.complete[:-_KEPT_COLUMNS]))
        if old := sorted(set(self._table.read().columns) - {*head.complete, head.making}):
            self._again(lambda dataset: dataset.drop_columns(old))

    def _again(self, do: Callable[[lance.LanceDataset], object]) -> None:
        """Do it until no write came between. Raises CollectionBusy."""
        for _ in range(_ATTEMPTS):
            try:
                do(self._table.read().dataset)
                return
            except OSError as error:
                if not is_conflict(error):
                    raise
        raise CollectionBusy(f"{self._table.uri}: other writers were first {_ATTEMPTS} times")


def _has_leftovers(head: Head) -> bool:
    since = head.leftovers_since
    return since is not None and datetime.now(UTC) - since > _KEPT_LEFTOVERS


def _compact(dataset: lance.LanceDataset, deleted_share: float) -> None:
    """Merge small fragments, and rewrite those of which this share is deleted, but for that of the head."""
    head = dataset.to_table(columns=[], filter=f"id = {quoted(HEAD_ID)}", with_row_address=True)
    dataset.optimize.compact_files(
        target_rows_per_fragment=_FRAGMENT_ROWS,
        materialize_deletions_threshold=deleted_share,
        excluded_fragment_ids=[address >> 32 for address in head["_rowaddr"].to_pylist()],
    )


def _update_index(name: str, dataset: lance.LanceDataset) -> None:
    """Add what was written since to an index."""
    try:
        # All its parts in one: each is looked through by every query.
        dataset.optimize.optimize_indices(num_indices_to_merge=_PARTS, index_names=[name])
    except OSError as error:
        # Lance expects a vector in what was written since, which often is the head row alone.
        if "/ivf_" not in str(error):
            raise


def _can_be_indexed(state: State, column: str) -> bool:
    """Whether so many items have a vector: the version may have learned few of the modalities."""
    return state.count(f"{column} IS NOT NULL") >= INDEX_FROM_ROWS


def _unindexed(state: State) -> set[str]:
    """Return columns that should have an index."""
    head = state.head
    # Without its index words are compared as they are; with it, in lower case and by their stems, also in items that
    # it does not have yet.
    wanted = {"text"} if head.spec.text_fields else set()
    if state.rows < INDEX_FROM_ROWS:
        return wanted - state.indexes.keys()
    missing = (wanted | _INDEXES.keys() - {"text"}) - state.indexes.keys()
    return missing | {
        column
        for column in set(head.complete) - state.indexes.keys()
        if _can_be_indexed(state, column)
    }


def _vectors(
    fragment: lance.LanceFragment,
    schema: pa.Schema,
    learned: Collection[str],
    embed: Embed,
    uri: str,
) -> Iterator[pa.RecordBatch]:
    column = schema.field(1)
    for modality in sorted(learned):
        with reading(uri):
            batches = fragment.to_batches(
                columns=["id", "feature", CHECKSUMS],
                filter=f"modality = {quoted(modality)}",
                batch_size=_ROWS_AT_ONCE,
                with_row_id=True,
            )
            for batch in batches:
                if batch.num_rows:
                    check_features(batch, uri)
                    features = batch["feature"].flatten().to_numpy(zero_copy_only=False)
                    features_BF = np.array(features.reshape(batch.num_rows, -1), np.float32)
                    vectors_BE = embed(column.name, modality, features_BF)
                    assert vectors_BE is not None, "the version has learned this modality"
                    assert len(vectors_BE) == batch.num_rows
                    numbers = pa.array(encoded(vectors_BE, column.type).ravel())
                    made = pa.FixedSizeListArray.from_arrays(numbers, column.type.list_size)
                    yield pa.record_batch([batch["_rowid"], made], schema=schema)
