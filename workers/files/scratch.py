"""The local disk (TMPDIR): temporary files with a limit on their total size, and verified shards, copied there.

Files are unlinked at once, so their space is freed when the process ends in any way. Space is reserved
before it is used, so that a disk that is too small is found at the start and not after hours.

A shard in a remote store is copied in pieces: memory holds a few of them, and a failed piece is retried by itself.
A shard on a local disk is read in place. Its digest is verified through the descriptor that is then read, so that
replacing the file has no effect, and its size and modification time are checked again at the end, in case it was
written to.
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
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from blake3 import blake3

from cmcl.contract.dataset import Shard
from cmcl.contract.errors import InvalidDataset, ObjectNotFound, StorageUnavailable
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import CHUNK_BYTES, ObjectStore, retry_unavailable
from cmcl.storage.uris import locate
from cmcl.storage.versions import Hasher

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
