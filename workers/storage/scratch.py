"""Room on this machine's disk for what a process needs only while it runs.

Files have no name: when their process ends, however it ends, their room is free again. They lie in
TMPDIR. Room is taken before it is needed: a disk that is too small is found out in the beginning, and
not after hours.
"""

import io
import os
import shutil
import tempfile
import threading
from pathlib import Path

from cmcl.contract.errors import StorageUnavailable


class Scratch:
    """`limit`: bytes that all files of it together may take; 0: as many as the disk has."""

    def __init__(self, limit: int = 0) -> None:
        self._limit, self._taken = limit, 0
        self._lock = threading.Lock()

    def new_file(self) -> "ScratchFile":
        """An empty file, to be closed by whoever asked for it. Raises StorageUnavailable."""
        try:
            return ScratchFile(self)
        except OSError as error:
            raise StorageUnavailable(
                f"no file can be made in {tempfile.gettempdir()}: {error.strerror}; let TMPDIR name "
                "a folder on a disk that can be written to"
            ) from error

    def check(self, size: int) -> None:
        """So much could be held by itself. Raises StorageUnavailable beyond the limit."""
        if self._limit and size > self._limit:
            raise StorageUnavailable(
                f"{size} bytes are needed in {tempfile.gettempdir()}, "
                f"CMCL_SCRATCH_BYTES permits {self._limit} to a rank: raise it, or use more ranks"
            )

    def take(self, size: int) -> None:
        """So many bytes more. Raises StorageUnavailable beyond the limit."""
        with self._lock:
            self.check(self._taken + size)
            self._taken += size

    def give_back(self, size: int) -> None:
        """They are free again."""
        with self._lock:
            self._taken -= size


class ScratchFile(io.FileIO):
    """A file without a name; what is written lies within what was reserved."""

    def __init__(self, scratch: Scratch) -> None:
        descriptor, path = tempfile.mkstemp(prefix="cmcl-")
        Path(path).unlink()
        super().__init__(descriptor, "r+")
        self._scratch, self._reserved = scratch, 0

    def reserve(self, size: int) -> None:
        """Have the disk keep room for the first `size` bytes. Raises StorageUnavailable for less."""
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
        """Its room is free again."""
        if not self.closed:
            self._scratch.give_back(self._reserved)
            self._reserved = 0
        super().close()


def _no_room(folder: str, needed: int, free: int, why: str = "") -> StorageUnavailable:
    return StorageUnavailable(
        f"{folder} has {free} bytes free, and this rank's part of the dataset needs {needed} more"
        f"{why}: let TMPDIR name a larger disk, or use more ranks"
    )
