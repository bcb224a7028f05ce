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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from cmcl.contract.dataset import FileFormat, RejectedRow, Shard, ShardRef, SourceFile
from cmcl.contract.errors import InvalidDataset
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import Digests, digests_of_file
from workers.files.formats.columns import float32_rows
from workers.files.formats.parquet import known_batches, must_be_converted, open_parquet
from workers.files.formats.registry import PARQUET, format_of
from workers.files.formats.user_file import Side, UserFile
from workers.files.shard_checks import ShardChecker
from workers.files.shards import (
    ShardWriter,
    count_rows,
    describe_shard,
    fetch,
    verified_digests,
    write_shard,
)


@dataclass(frozen=True)
class Address:
    """The address of a user's file. `allowed`: prefixes it must not leave; None: it is our own."""

    uri: str
    allowed: tuple[str, ...] | None


@dataclass(frozen=True)
class Split:
    """The two parts of a shard of which a share is held out; None for a part without rows."""

    training: Shard | None
    evaluation: Shard | None


class _Digesting:
    """Digests a local file in another thread, while the block reads it. Neither needs Python's lock.

    If the block raises InvalidDataset and the file is not the expected one, that is raised instead.
    """

    def __init__(self, ref: ShardRef, path: Path) -> None:
        self._thread = ThreadPoolExecutor(1, "digest")
        self._digests = self._thread.submit(verified_digests, ref, path)

    def __enter__(self) -> Callable[[], Digests]:
        """Return a function that waits for the digests. It raises InvalidDataset if others are expected."""
        return self._digests.result

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        if isinstance(error, InvalidDataset):
            self._digests.result()


@dataclass(frozen=True)
class _LocalFile:
    """A local copy of a user's file. `left_out`: as in `UserFile`."""

    ref: ShardRef
    path: Path
    sides: tuple[Side, Side]
    left_out: dict[int, str] | None = None

    def convert(self, digests: Callable[[], Digests]) -> tuple[FileFormat, bool]:
        """Convert the file in its place to Parquet in the internal form, if it has another one.

        Returns its format, and whether it was converted. Raises InvalidDataset.
        """
        path, uri = self.path, self.ref.uri
        format_ = format_of(path, uri)
        if format_ is PARQUET and not must_be_converted(path, uri):
            count_rows(path, uri)
            return format_.name, False
        # Before the file is replaced; ids of files without ids are derived from the digest.
        file = UserFile(path, uri, digests().sha256, self.sides, self.left_out)
        beside = path.with_name(f"{path.name}.converted")
        if write_shard(beside, format_.read(file)) == 0:
            raise file.wrong("it has no rows, at least 1 is needed")
        beside.replace(path)
        return format_.name, True


def take(ref: ShardRef, address: Address, path: Path, sides: tuple[Side, Side]) -> None:
    """Fetch a file of any format to `path`, as Parquet in the internal form; its values are not checked.

    Raises InvalidDataset if it is missing, has another digest or cannot be read; InvalidUri if it is outside
    of the allowed prefixes; StorageUnavailable if a retry can help.
    """
    fetch(ref, address.uri, path, address.allowed)
    with _Digesting(ref, path) as digests:
        _LocalFile(ref, path, sides).convert(digests)
        digests()


@dataclass(frozen=True)
class _Taken:
    """A checked local file. `digests`: of the user's file; None if this one is another: converted, or with
    rows left out.
    """

    source: SourceFile
    digests: Digests | None


class FeatureIntake:
    """Intake of one file of features. `folder` is for local copies.

    `left_out`: reasons by row for rows to leave out, to which all rows that cannot be used are added;
    None: such a row is an error. Afterwards `rejected` lists the rows that were left out, and `ids` has
    the digest of each row's id: ids are unique over a dataset, held-out rows included.
    """

    def __init__(
        self,
        store: ObjectStore,
        dataset: str,
        sides: tuple[Side, Side],
        folder: Path,
        left_out: dict[int, str] | None = None,
    ) -> None:
        self._store = store
        self._dataset = dataset
        self._sides = sides
        self._path = folder / "shard.parquet"
        self._folder = folder
        self._left_out = left_out
        self.rejected: tuple[RejectedRow, ...] = ()
        self.ids = b""

    def training_shard(self, ref: ShardRef, address: Address, index: int) -> Shard | None:
        """A shard to train on: the user's own, or the converted one; None if no row is left.

        Raises as `take` does.
        """
        taken = self._checked(ref, address)
        if taken.digests is not None:
            return describe_shard(self._path, address.uri, taken.digests)
        return self._stored(
            self._path, partial(layout.training_shard, self._dataset, index), taken.source
        )

    def evaluation_shard(self, ref: ShardRef, address: Address, index: int) -> Shard | None:
        """A held-out shard, copied into our store; None if no row is left. Raises as `take` does."""
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
        if self._path.exists():
            _split(self._path, ref.uri, share, (training, evaluation))
        keys = (
            partial(layout.training_shard, self._dataset, indices[0]),
            partial(layout.evaluation_shard, self._dataset, indices[1]),
        )
        return Split(
            *(
                self._stored(path, key, source)
                for path, key in zip((training, evaluation), keys, strict=True)
            )
        )

    def _checked(self, ref: ShardRef, address: Address) -> _Taken:
        """Fetch, convert and check a file, while another thread digests it."""
        fetch(ref, address.uri, self._path, address.allowed)
        size = self._path.stat().st_size
        with _Digesting(ref, self._path) as digests:
            file = _LocalFile(ref, self._path, self._sides, self._left_out)
            format_, is_converted = file.convert(digests)
            self._check(ref.uri)
            found = digests()
        source = SourceFile(uri=ref.uri, sha256=found.sha256, bytes=size, format=format_)
        if self._left_out:
            self.rejected = tuple(_leave_out(self._path, ref, self._left_out))
        return _Taken(source, None if is_converted or self._left_out else found)

    def _check(self, uri: str) -> None:
        checker = ShardChecker((self._sides[0].width, self._sides[1].width))
        if self._left_out is None:
            checker.check(self._path, uri)
        else:
            for row, reason in checker.wrong_rows(self._path, uri):
                self._left_out.setdefault(row, reason)
        self.ids = bytes(checker.digests)

    def _stored(
        self, path: Path, key_for: Callable[[str], str], source: SourceFile | None
    ) -> Shard | None:
        if not path.exists():
            return None
        digests = digests_of_file(path)
        key = key_for(digests.sha256)
        self._store.upload(path, key)
        shard = describe_shard(path, f"{self._store.uri}/{key}", digests, source)
        path.unlink()
        return shard


def _leave_out(path: Path, ref: ShardRef, reasons: Mapping[int, str]) -> Iterator[RejectedRow]:
    """Remove rows from a shard, and yield them; a shard without rows is removed."""
    rest = path.with_name(f"{path.name}.rest")
    first_row = 0
    with ShardWriter(rest) as writer:
        for batch in _plain_batches(path, ref.uri):
            ids = batch.column("id")
            kept_B = np.ones(batch.num_rows, bool)
            for offset in range(batch.num_rows):
                reason = reasons.get(first_row + offset)
                if reason is not None:
                    kept_B[offset] = False
                    row = first_row + offset
                    yield RejectedRow(
                        id=ids[offset].as_py(),
                        file=ref.uri,
                        row=row,
                        place=f"{ref.file_name} row {row + 1}",
                        reason=reason,
                    )
            writer.add(batch.filter(pa.array(kept_B)))
            first_row += batch.num_rows
    path.unlink()
    if writer.rows:
        rest.replace(path)


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
    # Adding zero turns -0.0 into 0.0: equal values have equal bytes.
    values_BI = np.ascontiguousarray(float32_rows(feature_a) + np.float32(0), dtype="<f4")
    return np.fromiter(
        (is_held_out(row_I.data, share) for row_I in values_BI), bool, len(values_BI)
    )


def is_held_out(content: bytes | memoryview, share: float) -> bool:
    """Whether a row with this content of its first modality is held out. `share`: 0 to 1."""
    digest = hashlib.blake2b(content, digest_size=8, person=_PERSON).digest()
    return int.from_bytes(digest, "big") < int(share * 2**64)
