"""The bytes of a shard, checked once more, for readers that want some of its rows.

A copy is made where the store is far away. What lies on a disk of this machine is read in place: it
is opened first and checked through the same descriptor, so that another file under its name changes
nothing, and looked at again in the end, in case somebody wrote into it.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from workers.contract.dataset import Shard
from workers.contract.errors import InvalidDataset, ObjectNotFound
from workers.storage.local import LocalStore
from workers.storage.patience import patiently
from workers.storage.port import CHUNK_BYTES
from workers.storage.shards import fetch
from workers.storage.uris import locate


def open_verified(shard: Shard, folder: Path) -> "VerifiedFile":
    """The shard, checked. Raises InvalidDataset, or StorageUnavailable after some patience.

    `folder` is for a copy; it is not seen there any more, and gone with the last who reads it.
    """
    store, key = locate(shard.uri)
    if isinstance(store, LocalStore):
        return _in_place(shard, store, key)
    path = folder / "shard.parquet"
    try:
        patiently(lambda: fetch(shard, path))
        return VerifiedFile(shard, path.open("rb"), None)
    finally:
        path.unlink(missing_ok=True)


class VerifiedFile:
    """An open shard whose digest was right."""

    def __init__(self, shard: Shard, file: BinaryIO, stamp: tuple[int, int] | None) -> None:
        self._shard, self._stamp = shard, stamp
        self._file = file

    def close(self) -> None:
        """It will not be read."""
        self._file.close()

    @contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        """The file; closed in the end. Raises InvalidDataset if it was changed meanwhile."""
        with self._file as file:
            yield file
            if self._stamp is not None and self._stamp != _stamp(file):
                raise InvalidDataset(f"{self._shard.uri}: it was changed while it was read")


def _in_place(shard: Shard, store: LocalStore, key: str) -> VerifiedFile:
    try:
        file = store.open(key)
    except ObjectNotFound as error:
        raise InvalidDataset(f"{shard.uri}: there is no such object") from error
    stamp, digest = _stamp(file), hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    if digest.hexdigest() != shard.sha256:
        file.close()
        raise InvalidDataset(
            f"{shard.uri}: its SHA-256 is {digest.hexdigest()}, expected {shard.sha256}"
        )
    file.seek(0)
    return VerifiedFile(shard, file, stamp)


def _stamp(file: BinaryIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns
