"""`file://` adapter: a folder on a disk that every process can see (one machine, NFS, a PVC).

Whole objects only: bytes go to a temporary file in the same folder, are flushed to the disk, then
renamed (overwrite) or hard-linked (create: the link fails if the name is taken).
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.contract.errors import InvalidUri, ObjectExists, ObjectNotFound, StorageUnavailable

_TEMPORARY = ".tmp-"


class LocalStore:
    """Objects are files under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.uri = self.root.as_uri()

    def read(self, key: str) -> bytes:
        with _translated(key):
            return self._path(key).read_bytes()

    def download(self, key: str, path: Path) -> None:
        with _translated(key):
            shutil.copyfile(self._path(key), path)

    def size(self, key: str) -> int:
        with _translated(key):
            return self._path(key).stat().st_size

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

    def copy(self, source: str, target: str) -> None:
        with _translated(source):
            self.upload(self._path(source), target)

    def keys(self, prefix: str) -> Iterator[str]:
        found = []
        for folder, _, files in os.walk(self._walk_root(prefix)):
            for name in files:
                key = (Path(folder) / name).relative_to(self.root).as_posix()
                if key.startswith(prefix) and not name.startswith(_TEMPORARY):
                    found.append(key)
        yield from sorted(found)

    def folders(self, prefix: str) -> list[str]:
        folder = self._path(prefix.rstrip("/")) if prefix else self.root
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())

    def delete(self, key: str) -> None:
        with _translated(key):
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        path = (self.root / key).resolve()
        if not path.is_relative_to(self.root) or path == self.root:
            raise InvalidUri(f"{key!r} leaves the store {self.uri}")
        return path

    def _walk_root(self, prefix: str) -> Path:
        folder = prefix.rpartition("/")[0]
        return self._path(folder) if folder else self.root

    @contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        """A path to write to, beside the target; gone afterwards whatever happened."""
        target = self._path(key)
        temporary = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        with _translated(key):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _flush(path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """The operating system's errors, in the port's words."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ObjectNotFound(f"there is no object {key!r}") from error
    except OSError as error:
        raise StorageUnavailable(f"{key!r}: {error.strerror or error}") from error
