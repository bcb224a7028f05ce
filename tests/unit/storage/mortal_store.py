"""A store whose process dies after some writes."""

from collections.abc import Iterator
from pathlib import Path

from workers.storage.port import ObjectStore


class Killed(BaseException):
    """The process is gone; no handler of an Exception sees it."""


class MortalStore:
    """A real store that lets `writes` writes pass and keeps the keys of all in order."""

    def __init__(self, store: ObjectStore, writes: int) -> None:
        self.uri = store.uri
        self.written: list[str] = []
        self._store = store
        self._left = writes

    def read(self, key: str) -> bytes:
        return self._store.read(key)

    def download(self, key: str, path: Path) -> None:
        self._store.download(key, path)

    def size(self, key: str) -> int:
        return self._store.size(key)

    def put(self, key: str, data: bytes) -> None:
        self._spend(key)
        self._store.put(key, data)

    def create(self, key: str, data: bytes) -> None:
        self._spend(key)
        self._store.create(key, data)

    def upload(self, path: Path, key: str) -> None:
        self._spend(key)
        self._store.upload(path, key)

    def copy(self, source: str, target: str) -> None:
        self._spend(target)
        self._store.copy(source, target)

    def keys(self, prefix: str) -> Iterator[str]:
        yield from self._store.keys(prefix)

    def folders(self, prefix: str) -> list[str]:
        return self._store.folders(prefix)

    def delete(self, key: str) -> None:
        self._spend(key)
        self._store.delete(key)

    def _spend(self, key: str) -> None:
        if self._left == 0:
            raise Killed
        self._left -= 1
        self.written.append(key)
