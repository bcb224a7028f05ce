"""Temporary files on the local disk (TMPDIR), with a limit on their total size.

Files are unlinked at once, so their space is freed when the process ends in any way. Space is reserved
before it is used, so that a disk that is too small is found at the start and not after hours.
"""

import io
import os
import shutil
import tempfile
import threading
from pathlib import Path

from cmcl.contract.errors import StorageUnavailable


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
