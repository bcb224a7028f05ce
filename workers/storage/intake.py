"""Turn a user's file into a shard for training: fetch, convert, check, split.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from cmcl.contract.dataset import Shard, ShardRef, SourceFile
from workers.storage import layout
from workers.storage.formats.columns import float32_rows
from workers.storage.formats.parquet import known_batches, must_be_converted, open_parquet
from workers.storage.formats.registry import PARQUET, format_of
from workers.storage.formats.user_file import Side, UserFile
from workers.storage.object_store import ObjectStore
from workers.storage.shards import (
    ShardChecker,
    ShardWriter,
    count_rows,
    describe_shard,
    download,
    write_shard,
)
from workers.storage.versions import Digests, digests_of_file


@dataclass(frozen=True)
class Address:
    """The address of a user's file. `allowed`: prefixes it must not leave; None: it is our own."""

    uri: str
    allowed: tuple[str, ...] | None


@dataclass(frozen=True)
class Taken:
    """A user's file as Parquet in the internal form, at a local path; its values are not yet checked.

    `digests`: of the file; None if it was converted.
    """

    source: SourceFile
    digests: Digests | None


@dataclass(frozen=True)
class Split:
    """The two parts of a shard of which a share is held out; None for a part without rows."""

    training: Shard | None
    evaluation: Shard | None


def take(ref: ShardRef, address: Address, path: Path, sides: tuple[Side, Side]) -> Taken:
    """Fetch a file of any format to `path`, as Parquet in the internal form.

    Raises InvalidDataset if it is missing, has another digest or cannot be read; InvalidUri if it is
    outside of the allowed prefixes; StorageUnavailable if a retry can help.
    """
    digests = download(ref, address.uri, path, address.allowed)
    file = UserFile(path, ref.uri, digests.sha256, sides)
    format_, size = format_of(file), path.stat().st_size
    source = SourceFile(uri=ref.uri, sha256=digests.sha256, bytes=size, format=format_.name)
    if format_ is PARQUET and not must_be_converted(path, ref.uri):
        count_rows(path, ref.uri)
        return Taken(source, digests)
    beside = path.with_name(f"{path.name}.converted")
    if write_shard(beside, format_.read(file)) == 0:
        raise file.wrong("it has no rows, at least 1 is needed")
    beside.replace(path)
    return Taken(source, None)


class DatasetIntake:
    """Intake of the files of one dataset, one after another. `folder` is for local copies.

    All files share one checker: ids are unique over a dataset, held-out rows included.
    """

    def __init__(
        self, store: ObjectStore, dataset: str, sides: tuple[Side, Side], folder: Path
    ) -> None:
        self._store = store
        self._dataset = dataset
        self._sides = sides
        self._path = folder / "shard.parquet"
        self._folder = folder
        self._checker = ShardChecker((sides[0].width, sides[1].width))

    def training_shard(self, ref: ShardRef, address: Address, index: int) -> Shard:
        """A shard to train on: the user's own, or the converted one. Raises as `take` does."""
        taken = self._checked(ref, address)
        if taken.digests is not None:
            return describe_shard(self._path, address.uri, taken.digests)
        return self._stored(
            self._path, partial(layout.training_shard, self._dataset, index), taken.source
        )

    def evaluation_shard(self, ref: ShardRef, address: Address, index: int) -> Shard:
        """A held-out shard, copied into our store. Raises as `take` does."""
        taken = self._checked(ref, address)
        source = taken.source if taken.digests is None else None
        return self._stored(
            self._path, partial(layout.evaluation_shard, self._dataset, index), source
        )

    def split_shard(
        self, ref: ShardRef, address: Address, share: float, indices: tuple[int, int]
    ) -> Split:
        """A shard of which `share` is held out. `indices`: of the training and evaluation shard."""
        source = self._checked(ref, address).source
        training, evaluation = (self._folder / name for name in ("training", "evaluation"))
        _split(self._path, ref.uri, share, (training, evaluation))
        keys = (
            partial(layout.training_shard, self._dataset, indices[0]),
            partial(layout.evaluation_shard, self._dataset, indices[1]),
        )
        return Split(
            *(
                self._stored(path, key, source) if path.exists() else None
                for path, key in zip((training, evaluation), keys, strict=True)
            )
        )

    def _checked(self, ref: ShardRef, address: Address) -> Taken:
        taken = take(ref, address, self._path, self._sides)
        self._checker.check(self._path, ref.uri)
        return taken

    def _stored(
        self, path: Path, key_for: Callable[[str], str], source: SourceFile | None
    ) -> Shard:
        digests = digests_of_file(path)
        key = key_for(digests.sha256)
        self._store.upload(path, key)
        shard = describe_shard(path, f"{self._store.uri}/{key}", digests, source)
        path.unlink()
        return shard


def _split(path: Path, uri: str, share: float, targets: tuple[Path, Path]) -> None:
    """Split the rows of a shard into two files; a file without rows is not written."""
    with ShardWriter(targets[0]) as training, ShardWriter(targets[1]) as evaluation:
        for batch in _plain_batches(path, uri):
            held_out = pa.array(held_out_rows(batch.column("feature_a"), share))
            evaluation.add(batch.filter(held_out))
            training.add(batch.filter(pa.compute.invert(held_out)))


def _plain_batches(path: Path, uri: str) -> Iterator[pa.RecordBatch]:
    """Decode dictionaries: they differ between batches, and a file needs one type per column."""
    for batch in known_batches(open_parquet(path, uri), path, uri):
        columns = {
            name: column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        yield pa.record_batch(columns)


_PERSON = b"cmcl-hold-out"


def held_out_rows(feature_a: pa.FixedSizeListArray, share: float) -> np.ndarray:
    """Whether to hold out each row (bool). `share`: 0 to 1."""
    below = int(share * 2**64)
    # Adding zero turns -0.0 into 0.0: equal values have equal bytes.
    values_BI = np.ascontiguousarray(float32_rows(feature_a) + np.float32(0), dtype="<f4")
    return np.fromiter((_number(row_I) < below for row_I in values_BI), bool, len(values_BI))


def _number(row_I: np.ndarray) -> int:
    digest = hashlib.blake2b(row_I.data, digest_size=8, person=_PERSON)
    return int.from_bytes(digest.digest(), "big")
