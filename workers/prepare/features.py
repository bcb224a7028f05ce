"""Files of features: each is fetched, converted, checked and split in the bounded child.

Parquet in the internal form stays where it is, unless rows of it are held out. Everything else is
written to our own store. Errors name files as the user does.

Rows are held out by their content: a row is held out if the digest of its `feature_a`, read as a number
between 0 and 1, is below the share. So the choice does not depend on order, shards or formats, it stays
when rows are added, and a larger share holds out a superset. The digest is of the feature and not of
the id: rows with an equal `feature_a` (one picture with five captions, an exact copy under another id)
are on the same side, since training on four captions of a picture and testing on the fifth would
overestimate every method. If `feature_a` has few distinct values, the share of rows can differ much
from the share of values.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cmcl.contract.dataset import FileFormat, RejectedRow, Shard, ShardRef, SourceFile, Uri
from cmcl.contract.errors import InvalidDataset
from cmcl.contract.modality import Frozen
from cmcl.storage import layout
from cmcl.storage.uris import open_store
from cmcl.storage.versions import Digests, digests_of_file
from workers.files.columns import FEATURES, Side, UserFile, float32_rows
from workers.files.formats import PARQUET, format_of
from workers.files.parquet import known_batches, must_be_converted, open_parquet
from workers.files.shards import (
    ShardWriter,
    count_rows,
    describe_shard,
    fetch,
    use_jemalloc,
    verified_digests,
    write_shard,
    wrong_rows,
)
from workers.prepare.units import SideSpec, UnitRecord
from workers.sandbox.child_process import FrameWriter

if TYPE_CHECKING:
    from workers.sandbox.child import Child

_ROWS_IN_A_FRAME = 1000
_PERSON = b"cmcl-hold-out"


class FeatureFile(Frozen):
    """One file of features, and how it is taken.

    `index`: number of its training shard, or of its evaluation shard if it `is_held_out`. `evaluation_index`:
    number of the shard of the rows that `share` holds out. `allowed`: permitted prefixes of addresses; None:
    the file is in our own store. `left_out`: reasons by row; None: a row that cannot be used is an error.
    `ids_key`: key under which the digests of its ids are stored: ids are unique over a dataset.
    """

    store: str
    dataset: str
    ref: ShardRef
    address: Uri
    allowed: tuple[str, ...] | None
    sides: tuple[SideSpec, SideSpec]
    is_held_out: bool
    share: float | None
    index: int
    evaluation_index: int
    left_out: dict[int, str] | None
    ids_key: str


def read_features(child: "Child", file: FeatureFile) -> UnitRecord:
    """Read a file in the child. Raises InvalidDataset, InvalidUri, StorageUnavailable."""
    try:
        *rejected, last = child.collect(take_features, file)
        rows = [row for frame in rejected for row in json.loads(bytes(frame.body))]
        return UnitRecord.model_validate({**last.header, "rejected": rows})
    except ValueError as error:
        # A child that parsed hostile bytes may send anything.
        wrong = f"{file.ref.uri}: reading it sent no sound result: {error}"
        raise InvalidDataset(wrong) from error


def take_features(file: FeatureFile, output: FrameWriter) -> None:
    """Check, convert and split a file, and send its shards. Runs in the child."""
    output.step(f"reading {file.ref.uri}")
    use_jemalloc()
    path = output.folder / "shard.parquet"
    left_out = None if file.left_out is None else dict(file.left_out)
    ids = bytearray()
    fetch(file.ref, file.address, path, file.allowed)
    size = path.stat().st_size
    with _digesting(file.ref, path) as digests:
        format_, is_converted = _convert(file, path, left_out, digests)
        widths = (file.sides[0].width, file.sides[1].width)
        for row, reason in wrong_rows(path, file.ref.uri, widths, ids):
            if left_out is None:
                raise InvalidDataset(f"{file.ref.uri}: {reason}")
            left_out.setdefault(row, reason)
        found = digests()
    source = SourceFile(uri=file.ref.uri, sha256=found.sha256, bytes=size, format=format_)
    shards, rejected = _shards(file, path, None if is_converted else found, source, left_out or {})
    open_store(file.store).put(file.ids_key, bytes(ids))
    for start in range(0, len(rejected), _ROWS_IN_A_FRAME):
        rows = [row.model_dump() for row in rejected[start : start + _ROWS_IN_A_FRAME]]
        output.send({}, [json.dumps(rows).encode()])
    output.send(shards.model_dump(mode="json", exclude={"rejected"}))


def _shards(
    file: FeatureFile,
    path: Path,
    theirs: Digests | None,
    source: SourceFile,
    left_out: Mapping[int, str],
) -> tuple[UnitRecord, list[RejectedRow]]:
    """Store the shards of a checked file. `theirs`: digests of a file that was not converted, which may stay in its place."""
    store, rejected = open_store(file.store), list[RejectedRow]()
    held_out, share = path.with_name("evaluation"), None if file.is_held_out else file.share
    if left_out or share is not None:
        rejected = list(_divide(path, held_out, file.ref, left_out, share))
        theirs = None

    def stored(local: Path, key_for: Callable[[str, int, str], str], index: int) -> Shard | None:
        if not local.exists():
            return None
        digests = digests_of_file(local)
        key = key_for(file.dataset, index, digests.sha256)
        store.upload(local, key)
        origin = source if theirs is None else None
        return describe_shard(local, f"{store.uri}/{key}", digests, origin)

    if file.is_held_out:
        evaluation = stored(path, layout.evaluation_shard, file.index)
        return UnitRecord(evaluation=evaluation), rejected
    if theirs is not None:
        return UnitRecord(training=describe_shard(path, file.address, theirs)), rejected
    training = stored(path, layout.training_shard, file.index)
    evaluation = stored(held_out, layout.evaluation_shard, file.evaluation_index)
    return UnitRecord(training=training, evaluation=evaluation), rejected


@contextmanager
def _digesting(ref: ShardRef, path: Path) -> Iterator[Callable[[], Digests]]:
    """Digest a local file in another thread, while the block reads it. Neither needs Python's lock.

    Yields a function that waits for the digests, and raises InvalidDataset if others are expected. That error
    is also raised in place of one that the block raises: they are found at the same time.
    """
    with ThreadPoolExecutor(1, "digest") as thread:
        digests = thread.submit(verified_digests, ref, path)
        try:
            yield digests.result
        except InvalidDataset:
            digests.result()
            raise


def _convert(
    file: FeatureFile, path: Path, left_out: dict[int, str] | None, digests: Callable[[], Digests]
) -> tuple[FileFormat, bool]:
    """Convert the local copy in its place to Parquet in the internal form, if it has another one.

    Returns its format, and whether it was converted. Raises InvalidDataset.
    """
    uri = file.ref.uri
    format_ = format_of(path, uri)
    if format_ is PARQUET and not must_be_converted(path, uri):
        count_rows(path, uri)
        return format_.name, False
    first, second = (
        Side(column, side.modality, side.width)
        for column, side in zip(FEATURES, file.sides, strict=True)
    )
    # The digest is needed before the file is replaced; ids of files without ids are derived from it.
    theirs = UserFile(path, uri, digests().sha256, (first, second), left_out)
    beside = path.with_name(f"{path.name}.converted")
    if write_shard(beside, format_.read(theirs)) == 0:
        raise theirs.wrong("it has no rows, at least 1 is needed")
    beside.replace(path)
    return format_.name, True


def _divide(
    path: Path, held_out: Path, ref: ShardRef, reasons: Mapping[int, str], share: float | None
) -> Iterator[RejectedRow]:
    """Remove rows from a shard, and yield those that have a reason; a share is moved to another shard. None has no rows."""
    rest = path.with_name(f"{path.name}.rest")
    first_row = 0
    with ShardWriter(rest) as training, ShardWriter(held_out) as evaluation:
        for batch in _plain_batches(path, ref.uri):
            kept_B = np.ones(batch.num_rows, bool)
            for row in range(first_row, first_row + batch.num_rows):
                if row in reasons:
                    kept_B[row - first_row] = False
                    yield RejectedRow(
                        id=batch.column("id")[row - first_row].as_py(),
                        file=ref.uri,
                        row=row,
                        place=f"{ref.file_name} row {row + 1}",
                        reason=reasons[row],
                    )
            first_row += batch.num_rows
            kept = batch.filter(pa.array(kept_B))
            if share is None:
                training.add(kept)
                continue
            is_held_out_B = pa.array(held_out_rows(kept.column("feature_a"), share))
            evaluation.add(kept.filter(is_held_out_B))
            training.add(kept.filter(pa.compute.invert(is_held_out_B)))
    path.unlink()
    if training.rows:
        rest.replace(path)


def _plain_batches(path: Path, uri: str) -> Iterator[pa.RecordBatch]:
    """Decode dictionaries: they differ between batches, and a file needs one type per column."""
    for batch in known_batches(open_parquet(path, uri), path, uri):
        columns = {
            name: column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        yield pa.record_batch(columns)


def held_out_rows(feature_a: pa.FixedSizeListArray, share: float) -> np.ndarray:
    """Whether to hold out each row (bool). `share`: 0 to 1."""
    # Adding zero turns -0.0 into 0.0: equal values have equal bytes.
    values_BI = np.ascontiguousarray(float32_rows(feature_a) + np.float32(0), dtype="<f4")
    return np.fromiter(
        (is_held_out(row_I.data, share) for row_I in values_BI), bool, len(values_BI)
    )


def is_held_out(content: bytes | memoryview, share: float) -> bool:
    """Whether a row with this content of its first modality is held out. `share`: 0 to 1."""
    digest = hashlib.blake2b(content, digest_size=8, person=_PERSON).digest()
    return int.from_bytes(digest, "big") < int(share * 2**64)
