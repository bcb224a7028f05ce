"""Files of features: each is fetched, checked, and converted or split in the bounded child.

A file is read once to check it. Parquet in the internal form then stays where it is, unless rows of it are left out or
held out. Any other file is read again and written to our own store. Errors name files as the user does.

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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from blake3 import blake3

from cmcl.contract.dataset import RejectedRow, Shard, ShardRef, SourceFile, Uri
from cmcl.contract.errors import InvalidDataset
from cmcl.contract.modality import Frozen
from cmcl.storage import layout
from cmcl.storage.uris import open_store
from cmcl.storage.versions import Digests, digests_of_file
from workers.files.columns import FEATURES, Side, UserFile, check_rows, float32_rows
from workers.files.formats import PARQUET, Format, format_of, is_internal
from workers.files.shards import ShardWriter, describe_shard, fetch, use_jemalloc, verified_digests
from workers.prepare.units import SideSpec, UnitRecord
from workers.sandbox.child_process import FrameWriter

if TYPE_CHECKING:
    from workers.sandbox.child import Child

_ROWS_IN_A_FRAME = 1000
# Names of the local files that are written.
_REST, _HELD_OUT = "rest", "held-out"
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
    path, uri = output.folder / "theirs", file.ref.uri
    fetch(file.ref, file.address, path, file.allowed)
    with _digesting(file.ref, path) as digests:
        format_ = format_of(path, uri)
        first, second = (
            Side(column, side.modality, side.width)
            for column, side in zip(FEATURES, file.sides, strict=True)
        )
        # Ids of files without ids are derived from the digest; that of Parquet is computed while it is read.
        sha256 = "" if format_ is PARQUET else digests().sha256
        left_out = None if file.left_out is None else dict(file.left_out)
        theirs = UserFile(path, uri, sha256, (first, second), left_out)
        ids = check_rows(format_.read(theirs), theirs)
        found = digests()
    checksum = blake3(file.ids_key.encode() + bytes(ids)).digest()
    open_store(file.store).put(file.ids_key, checksum + bytes(ids))
    share = None if file.is_held_out else file.share
    if format_ is PARQUET and is_internal(path, uri) and not left_out and share is None:
        shards, rejected = _as_it_is(file, path, found), list[RejectedRow]()
    else:
        source = SourceFile(
            uri=uri, sha256=found.sha256, bytes=path.stat().st_size, format=format_.name
        )
        rejected = list(_divide(format_, theirs, file.ref, share))
        shards = _stored(file, path, source)
    for start in range(0, len(rejected), _ROWS_IN_A_FRAME):
        rows = [row.model_dump() for row in rejected[start : start + _ROWS_IN_A_FRAME]]
        output.send({}, [json.dumps(rows).encode()])
    output.send(shards.model_dump(mode="json", exclude={"rejected"}))


def _as_it_is(file: FeatureFile, path: Path, digests: Digests) -> UnitRecord:
    """Return the shard of a file in the internal form. Held-out ones are copied: later versions are measured on them."""
    if not file.is_held_out:
        return UnitRecord(training=describe_shard(path, file.address, digests))
    store, key = (
        open_store(file.store),
        layout.evaluation_shard(file.dataset, file.index, digests.sha256),
    )
    store.upload(path, key)
    return UnitRecord(evaluation=describe_shard(path, f"{store.uri}/{key}", digests))


def _stored(file: FeatureFile, path: Path, source: SourceFile) -> UnitRecord:
    """Store the shards that `_divide` wrote."""
    store = open_store(file.store)

    def stored(part: str, key_for: Callable[[str, int, str], str], index: int) -> Shard | None:
        local = path.with_name(part)
        if not local.exists():
            return None
        digests = digests_of_file(local)
        key = key_for(file.dataset, index, digests.sha256)
        store.upload(local, key)
        return describe_shard(local, f"{store.uri}/{key}", digests, source)

    if file.is_held_out:
        return UnitRecord(evaluation=stored(_REST, layout.evaluation_shard, file.index))
    return UnitRecord(
        training=stored(_REST, layout.training_shard, file.index),
        evaluation=stored(_HELD_OUT, layout.evaluation_shard, file.evaluation_index),
    )


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


def _divide(
    format_: Format, theirs: UserFile, ref: ShardRef, share: float | None
) -> Iterator[RejectedRow]:
    """Write the usable rows of a file as one shard, and a share of them as another one. Yields the other rows.

    A shard without rows is not written.
    """
    reasons, folder = theirs.left_out or {}, theirs.path.parent
    first_row = 0
    with ShardWriter(folder / _REST) as rest, ShardWriter(folder / _HELD_OUT) as held_out:
        for batch in format_.read(theirs):
            rows = range(first_row, first_row + batch.num_rows)
            for row in (row for row in rows if row in reasons):
                yield RejectedRow(
                    id=batch.column("id")[row - first_row].as_py(),
                    file=ref.uri,
                    row=row,
                    place=f"{ref.file_name} row {row + 1}",
                    reason=reasons[row],
                )
            first_row = rows.stop
            kept = batch.filter(pa.array([row not in reasons for row in rows]))
            if share is None:
                rest.add(kept)
                continue
            is_held_out_B = pa.array(held_out_rows(kept.column("feature_a"), share))
            held_out.add(kept.filter(is_held_out_B))
            rest.add(kept.filter(pa.compute.invert(is_held_out_B)))


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
