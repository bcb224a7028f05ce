"""Feature shards: Parquet with `id`, optional `label`, and `feature_a`, `feature_b` as fixed-size lists; and the local disk.

`formats` converts other files into this form.
"""

import hashlib
import io
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from cmcl.contract.dataset import Shard, ShardRef, SourceFile
from cmcl.contract.errors import InvalidDataset, ObjectNotFound, StorageUnavailable
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import CHUNK_BYTES, ObjectStore, retry_unavailable
from cmcl.storage.uris import locate, locate_allowed
from cmcl.storage.versions import Digests, Hasher, digests_of_file
from workers.files.columns import FEATURES, ROWS_AT_ONCE, float32_rows, known_columns
from workers.files.formats import BUFFERING, open_parquet

# Values of both sides: 16 MiB as float32, and a few times that while Parquet is decoded.
_VALUES_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Rows:
    """Rows of a dataset in memory, in the order of its shards.

    `feature_a_BI`, `feature_b_BI`: float32, raw encoder outputs. `label_B`: strings, or None.
    """

    feature_a_BI: np.ndarray
    feature_b_BI: np.ndarray
    label_B: np.ndarray | None

    def __len__(self) -> int:
        return len(self.feature_a_BI)


def download(ref: ShardRef | Shard, address: str, path: Path) -> Digests:
    """Download a file from `address`, verify it, and return its digests. Messages name `ref.uri`.

    Raises InvalidDataset, InvalidUri, StorageUnavailable.
    """
    fetch(ref, address, path)
    return verified_digests(ref, path)


def fetch(
    ref: ShardRef | Shard, address: str, path: Path, allowed: tuple[str, ...] | None = None
) -> None:
    """Download a file of any format from `address`. Messages name `ref.uri`.

    `allowed`: prefixes that it must not leave, also through links. Raises InvalidDataset, InvalidUri,
    StorageUnavailable.
    """
    store, key = locate(address) if allowed is None else locate_allowed(address, allowed)
    try:
        store.download(key, path)
    except ObjectNotFound as error:
        raise InvalidDataset(f"{ref.uri}: there is no such object") from error


def verified_digests(ref: ShardRef | Shard, path: Path) -> Digests:
    """Return the digests of a local copy. Raises InvalidDataset if `ref` has another one."""
    digests = digests_of_file(path)
    if ref.sha256 is not None and digests.sha256 != ref.sha256:
        raise InvalidDataset(f"{ref.uri}: its SHA-256 is {digests.sha256}, expected {ref.sha256}")
    return digests


def count_rows(path: Path, uri: str) -> int:
    """Number of rows of a shard, from its footer. Raises InvalidDataset if it has none."""
    rows: int = open_parquet(path, uri).metadata.num_rows
    if rows == 0:
        raise InvalidDataset(f"{uri}: it has no rows, at least 1 is needed")
    return rows


def describe_shard(
    path: Path, uri: str, known: Digests | None = None, source: SourceFile | None = None
) -> Shard:
    """The manifest's entry for the shard at `path`, which is stored at `uri`. Raises InvalidDataset.

    `known`: its digests, if they have been computed.
    """
    digests = known or digests_of_file(path)
    return Shard(
        uri=uri,
        sha256=digests.sha256,
        blake3=digests.blake3,
        bytes=path.stat().st_size,
        rows=count_rows(path, uri),
        source=source,
    )


def use_jemalloc() -> None:
    """Set Arrow's memory pool to jemalloc, if Arrow was built with it.

    With Arrow's default every second process reads a third slower.
    """
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())


def open_in_pieces(source: Path | pa.NativeFile) -> pq.ParquetFile:
    """Open a shard so that memory is independent of the size of its row groups."""
    return pq.ParquetFile(source, **BUFFERING)


def rows_at_once(schema: pa.Schema, values: int = _VALUES_AT_ONCE) -> int:
    """How many rows of a shard to decode at a time: fewer if they are wide."""
    width: int = sum(schema.field(name).type.list_size for name in FEATURES)
    return max(1, min(ROWS_AT_ONCE, values // width))


def rows_of(files: Iterable[pq.ParquetFile], every: int = 1) -> Rows:
    """Rows of verified shards as float32: every `every`-th row, from the first.

    A file is requested when those before it are read. Other columns of the user are not read.
    """
    tables, rows = [], 0
    for file in files:
        tables.append(_read(file, -rows % every, every))
        rows += file.metadata.num_rows
    first_BI, second_BI = (
        np.concatenate([float32_rows(table.column(column)) for table in tables])
        for column in FEATURES
    )
    return Rows(first_BI, second_BI, _labels(tables))


def _read(file: pq.ParquetFile, first: int, every: int) -> pa.Table:
    """Rows `first`, `first + every` and so on, in little more memory than they need."""
    known, parts, row = known_columns(file.schema_arrow), [], 0
    for batch in file.iter_batches(rows_at_once(file.schema_arrow), columns=known):
        chosen = np.arange((first - row) % every, batch.num_rows, every)
        parts.append(batch.take(pa.array(chosen)))
        row += batch.num_rows
    schema = pa.schema([file.schema_arrow.field(name) for name in known])
    return pa.Table.from_batches(parts, schema)


def _labels(tables: list[pa.Table]) -> np.ndarray | None:
    if not all("label" in table.column_names for table in tables):
        return None
    return np.concatenate(
        [np.asarray(table.column("label").to_pylist(), dtype=object) for table in tables]
    )


ROWS_IN_A_GROUP = 8192


class ShardWriter:
    """Writes batches of any size as one file. Equal rows give equal bytes. Without rows, no file.

    A context manager. Raises StorageUnavailable if the disk cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with _disk():
            if error is None and self._waiting:
                self._write(pa.Table.from_batches(self._waiting))
            if self._writer is not None:
                self._writer.close()

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows."""
        if not batch.num_rows:
            return
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        self.rows += batch.num_rows
        if self._waiting_rows < ROWS_IN_A_GROUP:
            return
        table = pa.Table.from_batches(self._waiting)
        whole = self._waiting_rows - self._waiting_rows % ROWS_IN_A_GROUP
        with _disk():
            self._write(table.slice(0, whole))
        self._waiting = table.slice(whole).to_batches()
        self._waiting_rows -= whole

    def _write(self, table: pa.Table) -> None:
        schema = _without_gaps(table.schema)
        if self._writer is None:
            # Encoders' outputs hardly compress or repeat, and decoding would cost time in every read.
            dictionary = [name for name in table.column_names if name == "label"]
            self._writer = pq.ParquetWriter(
                self._path, schema, compression="none", use_dictionary=dictionary or False
            )
        self._writer.write_table(table.cast(schema), row_group_size=ROWS_IN_A_GROUP)


def _without_gaps(schema: pa.Schema) -> pa.Schema:
    """Declare features and their numbers as not nullable.

    Parquet stores a presence flag for each nullable number, and such files take 1.7 times as long to
    decode.
    """
    for name in FEATURES:
        index, of_lists = schema.get_field_index(name), schema.field(name).type
        number = pa.field("element", of_lists.value_type, nullable=False)
        features = pa.field(name, pa.list_(number, of_lists.list_size), nullable=False)
        schema = schema.set(index, features)
    return schema


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(f"a converted shard cannot be written: {error}") from error


def write_shard(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Write all batches as one file and return the number of rows. Without rows, no file."""
    with ShardWriter(path) as writer:
        for batch in batches:
            writer.add(batch)
    return writer.rows


# The local disk (TMPDIR): temporary files with a limit on their total size, and verified shards, copied there.
#
# Files are unlinked at once, so their space is freed when the process ends in any way. Space is reserved before it is
# used, so that a disk that is too small is found at the start and not after hours.
#
# A shard in a remote store is copied in pieces: memory holds a few of them, and a failed piece is retried by itself. A
# shard on a local disk is read in place. Its digest is verified through the descriptor that is then read, so that
# replacing the file has no effect, and its size and modification time are checked again at the end, in case it was written
# to.

# Requests of this size are nearly as fast as a single one, and cheap to retry.
PIECE_BYTES = 16 << 20
PIECES_AT_ONCE = 4


class Scratch:
    """`limit`: bytes of all its files together; 0: no limit but the disk."""

    def __init__(self, limit: int = 0) -> None:
        self._limit, self._taken = limit, 0
        self._lock = threading.Lock()

    def new_file(self) -> "ScratchFile":
        """Create an empty file, which the caller must close. Raises StorageUnavailable."""
        try:
            return ScratchFile(self)
        except OSError as error:
            raise StorageUnavailable(
                f"no file can be created in {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a "
                "folder on a writable disk"
            ) from error

    def check(self, size: int) -> None:
        """Raises StorageUnavailable if `size` bytes by themselves exceed the limit."""
        if self._limit and size > self._limit:
            raise StorageUnavailable(
                f"{size} bytes are needed in {tempfile.gettempdir()}, "
                f"CMCL_SCRATCH_BYTES permits {self._limit} to a rank: raise it, or use more ranks"
            )

    def take(self, size: int) -> None:
        """Reserve `size` more bytes. Raises StorageUnavailable beyond the limit."""
        with self._lock:
            self.check(self._taken + size)
            self._taken += size

    def give_back(self, size: int) -> None:
        """Free `size` reserved bytes."""
        with self._lock:
            self._taken -= size


class ScratchFile(io.FileIO):
    """An unlinked file. Reserve space before writing."""

    def __init__(self, scratch: Scratch) -> None:
        descriptor, path = tempfile.mkstemp(prefix="cmcl-")
        Path(path).unlink()
        super().__init__(descriptor, "r+")
        self._scratch, self._reserved = scratch, 0

    def reserve(self, size: int) -> None:
        """Reserve disk space for the first `size` bytes. Raises StorageUnavailable if it is missing."""
        more = size - self._reserved
        if more <= 0:
            return
        self._scratch.take(more)
        self._reserved = size
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if more > free:
            raise _no_room(folder, more, free)
        try:
            os.posix_fallocate(self.fileno(), 0, size)
        except OSError as error:
            raise _no_room(folder, more, free, f" ({error.strerror})") from error

    def close(self) -> None:
        """Close the file and free its space."""
        if not self.closed:
            self._scratch.give_back(self._reserved)
            self._reserved = 0
        super().close()


def _no_room(folder: str, needed: int, free: int, why: str = "") -> StorageUnavailable:
    return StorageUnavailable(
        f"{folder} has {free} bytes free, and this rank's part of the dataset needs {needed} more"
        f"{why}: set TMPDIR to a larger disk, or use more ranks"
    )


def open_verified(shard: Shard, scratch: Scratch) -> "VerifiedFile":
    """Open a shard and verify its digest. `scratch` is for a copy.

    Raises InvalidDataset; StorageUnavailable after retries, and if there is no disk space.
    """
    store, key = locate(shard.uri)
    try:
        if isinstance(store, LocalStore):
            return _in_place(shard, store, key)
        return _copied(shard, store, key, scratch)
    except ObjectNotFound as error:
        raise InvalidDataset(f"{shard.uri}: there is no such object") from error


def check_room(shards: Iterable[Shard], scratch: Scratch) -> None:
    """Raises StorageUnavailable if a single shard exceeds the limit of `scratch`."""
    for shard in shards:
        store, _ = locate(shard.uri)
        if not isinstance(store, LocalStore):
            scratch.check(shard.bytes)


class VerifiedFile:
    """An open shard whose digest is verified."""

    def __init__(
        self, shard: Shard, file: io.RawIOBase | BinaryIO, stamp: tuple[int, int] | None
    ) -> None:
        self._shard, self._file, self._stamp = shard, file, stamp

    @contextmanager
    def reading(self) -> Iterator[pa.NativeFile]:
        """The file for Arrow, closed at the end. Raises InvalidDataset if it was modified in between."""
        # The verified descriptor, opened by Arrow itself: a Python file would need the GIL for every read.
        with closing(self._file), pa.OSFile(f"/dev/fd/{self._file.fileno()}") as source:
            yield source
            if self._stamp is not None and self._stamp != _stamp(self._file.fileno()):
                raise InvalidDataset(f"{self._shard.uri}: it was changed while it was read")


def _copied(shard: Shard, store: ObjectStore, key: str, scratch: Scratch) -> VerifiedFile:
    size = retry_unavailable(partial(store.size, key))
    if size != shard.bytes:
        raise InvalidDataset(
            f"{shard.uri}: it has {size} bytes, expected {shard.bytes}: it is not the file that was "
            "verified"
        )
    digest, file = _Digest(shard), scratch.new_file()
    try:
        file.reserve(size)
        with closing(pieces(store, key, size)) as all_pieces:
            for piece in all_pieces:
                digest.update(piece)
                _write(file, piece)
        digest.check()
    except BaseException:
        file.close()
        raise
    return VerifiedFile(shard, file, None)


def pieces(store: ObjectStore, key: str, size: int) -> Generator[bytes]:
    """All bytes of an object in order, fetched a few pieces at a time."""

    def piece(start: int) -> bytes:
        return store.read_range(key, start, min(start + PIECE_BYTES, size))

    with ThreadPoolExecutor(PIECES_AT_ONCE, "pieces") as threads:
        pending: deque[Future[bytes]] = deque()
        try:
            for start in range(0, size, PIECE_BYTES):
                pending.append(threads.submit(retry_unavailable, partial(piece, start)))
                if len(pending) == PIECES_AT_ONCE:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for each in pending:
                each.cancel()


def _write(file: io.RawIOBase, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _in_place(shard: Shard, store: LocalStore, key: str) -> VerifiedFile:
    file = retry_unavailable(partial(store.open, key))
    try:
        stamp, digest, place = _stamp(file.fileno()), _Digest(shard), 0
        while chunk := retry_unavailable(partial(_read_at, file, place, shard.uri)):
            digest.update(chunk)
            place += len(chunk)
        digest.check()
    except BaseException:
        file.close()
        raise
    return VerifiedFile(shard, file, stamp)


def _read_at(file: BinaryIO, place: int, uri: str) -> bytes:
    try:
        return os.pread(file.fileno(), CHUNK_BYTES, place)
    except OSError as error:
        raise StorageUnavailable(f"{uri}: {error.strerror}") from error


class _Digest:
    """Digest of what was read so far: BLAKE3, or SHA-256 for shards without one."""

    def __init__(self, shard: Shard) -> None:
        self._uri = shard.uri
        self._hash: Hasher
        if shard.blake3 is None:
            self._name, self._expected, self._hash = "SHA-256", shard.sha256, hashlib.sha256()
        else:
            self._name, self._expected, self._hash = "BLAKE3", shard.blake3, blake3()

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    def check(self) -> None:
        """Raises InvalidDataset if the digest is not that of the verified file."""
        found = self._hash.hexdigest()
        if found != self._expected:
            raise InvalidDataset(
                f"{self._uri}: its {self._name} is {found}, expected {self._expected}: it is not the "
                "file that was verified"
            )


def _stamp(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns
