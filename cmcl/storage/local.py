"""`file://` adapter: a folder on a disk that every process can access (one machine, NFS, a PVC).

Writes are atomic: bytes go to a temporary file in the same folder, are flushed to disk, and the file is
renamed (overwrite) or hard-linked (create, which fails if the name exists).
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cmcl.contract.errors import InvalidUri, ObjectExists, ObjectNotFound, StorageUnavailable
from cmcl.storage.object_store import CHUNK_BYTES, checked_key, checked_prefix

_TEMPORARY = ".tmp-"


class LocalStore:
    """Objects are files under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.uri = self.root.as_uri()

    def read(self, key: str) -> bytes:
        with _translated(key), self.open(key) as file:
            return file.read()

    def stream(self, key: str) -> Iterator[bytes]:
        with _translated(key):
            return _chunks(self.open(key), key)

    def open(self, key: str) -> BinaryIO:
        """Open the object's file component by component, so that no symbolic link is followed.

        Raises ObjectNotFound.
        """
        with _translated(key):
            parts = self._existing(key).relative_to(self.root).parts
            try:
                return os.fdopen(_open_beneath(self.root, parts), "rb")
            except FileNotFoundError as error:
                raise ObjectNotFound(f"there is no object {key!r}") from error

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        with _translated(key), self.open(key) as file:
            file.seek(start)
            return file.read(stop - start)

    def download(self, key: str, path: Path) -> None:
        with _translated(key), self.open(key) as source, path.open("wb") as target:
            _copy(source, target)

    def size(self, key: str) -> int:
        with _translated(key):
            return self._existing(key).stat().st_size

    def put(self, key: str, data: bytes) -> None:
        with self._temporary(key) as temporary:
            _write(temporary, data)
            temporary.replace(self._path(key))

    def create(self, key: str, data: bytes) -> None:
        with self._temporary(key) as temporary:
            _write(temporary, data)
            try:
                os.link(temporary, self._path(key))
            except FileExistsError as error:
                raise ObjectExists(f"{self.uri}/{key} exists already") from error

    def upload(self, path: Path, key: str) -> None:
        with self._temporary(key) as temporary:
            shutil.copyfile(path, temporary)
            _flush(temporary)
            temporary.replace(self._path(key))

    @contextmanager
    def writer(self, key: str, size: int) -> Iterator[BinaryIO]:
        with self._temporary(key) as temporary:
            with temporary.open("wb") as file:
                yield file
            _flush(temporary)
            temporary.replace(self._path(key))

    def keys(self, prefix: str) -> Iterator[str]:
        parent = checked_prefix(prefix).rpartition("/")[0]
        with _translated(prefix):
            found = [key for key in self._files(self._folder(parent)) if key.startswith(prefix)]
        yield from sorted(found)

    def folders(self, prefix: str) -> list[str]:
        folder = self._folder(checked_prefix(prefix).rstrip("/"))
        with _translated(prefix):
            entries = list(folder.iterdir()) if folder.is_dir() else []
            return sorted(
                entry.name for entry in entries if entry.is_dir() and any(self._files(entry))
            )

    def delete(self, key: str) -> None:
        with _translated(key):
            path = self._path(key)
            if path.is_file():
                path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        path = (self.root / checked_key(key)).resolve()
        if not path.is_relative_to(self.root):
            raise InvalidUri(f"{key!r} leaves the store {self.uri}")
        return path

    def _existing(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            raise ObjectNotFound(f"there is no object {key!r}")
        return path

    def _folder(self, key: str) -> Path:
        return self._path(key) if key else self.root

    def _files(self, folder: Path) -> Iterator[str]:
        """Keys below a folder, unordered; none if the folder does not exist."""
        if not folder.is_dir():
            return
        for path, _, names in os.walk(folder, onerror=_fail):
            # A folder may have thousands of files.
            prefix = (
                ""
                if Path(path) == self.root
                else f"{Path(path).relative_to(self.root).as_posix()}/"
            )
            for name in names:
                if not name.startswith(_TEMPORARY):
                    yield f"{prefix}{name}"

    @contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        """A path to write to in the folder of the target, removed afterwards in any case."""
        target = self._path(key)
        temporary = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        with _translated(key):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temporary
                # Flush the folder too: without it a power failure could undo the rename.
                _flush(target.parent)
            finally:
                temporary.unlink(missing_ok=True)


def _open_beneath(root: Path, parts: Sequence[str]) -> int:
    """Open a file below `root` without following symbolic links; return its descriptor."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)


def _chunks(file: BinaryIO, key: str) -> Iterator[bytes]:
    """Yield the contents of an open file, then close it."""
    with _translated(key), file:
        left = os.fstat(file.fileno()).st_size
        while chunk := file.read(min(CHUNK_BYTES, left)):
            left -= len(chunk)
            assert left >= 0
            yield chunk
        if left:
            raise StorageUnavailable(f"{key!r} ended {left} bytes before its declared length")


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    """Copy the rest of a file through one buffer: new memory for each chunk would cost a tenth of the time."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    # A file that was opened with `open` has the method.
    while size := source.readinto(buffer):  # type: ignore[attr-defined]
        target.write(buffer[:size])


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _flush(path)


def _fail(error: OSError) -> None:
    """Raise for a folder that cannot be read, which os.walk would skip."""
    raise error


def _flush(path: Path) -> None:
    """Flush a file's bytes, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """Translate OSError to storage errors."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            # Not an outage: retrying cannot help.
            raise InvalidUri(f"{key[:60]!r}... is too long a name for this store") from error
        raise StorageUnavailable(f"{key!r}: {error.strerror or error}") from error
