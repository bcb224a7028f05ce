"""A store that can be made unavailable."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmcl.contract.errors import StorageUnavailable
from cmcl.storage.object_store import ObjectStore, Writer


class FlakyStore:
    """A real store whose calls on keys that contain `broken` fail, and deletions after `deletes_left` of them."""

    def __init__(self, store: ObjectStore) -> None:
        self.uri = store.uri
        self.broken: str | None = None
        self.deletes_left: int | None = None
        self.calls: list[str] = []
        self._store = store

    def read(self, key: str) -> bytes:
        self._pass(key)
        return self._store.read(key)

    def stream(self, key: str) -> Iterator[bytes]:
        self._pass(key)
        return self._store.stream(key)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        self._pass(key)
        return self._store.read_range(key, start, stop)

    def download(self, key: str, path: Path) -> None:
        self._pass(key)
        self._store.download(key, path)

    def size(self, key: str) -> int:
        self._pass(key)
        return self._store.size(key)

    def put(self, key: str, data: bytes) -> None:
        self._pass(key)
        self._store.put(key, data)

    def create(self, key: str, data: bytes) -> None:
        self._pass(key)
        self._store.create(key, data)

    def upload(self, path: Path, key: str) -> None:
        self._pass(key)
        self._store.upload(path, key)

    @contextmanager
    def writer(self, key: str, size: int) -> Iterator[Writer]:
        self._pass(key)
        with self._store.writer(key, size) as writer:
            yield writer
            self._pass(key)

    def keys(self, prefix: str) -> Iterator[str]:
        self._pass(prefix)
        yield from self._store.keys(prefix)

    def folders(self, prefix: str) -> list[str]:
        self._pass(prefix)
        return self._store.folders(prefix)

    def delete(self, key: str) -> None:
        self._pass(key)
        if self.deletes_left is not None:
            if not self.deletes_left:
                raise StorageUnavailable(f"{key!r}: is not deleted (on purpose)")
            self.deletes_left -= 1
        self._store.delete(key)

    def _pass(self, key: str) -> None:
        self.calls.append(key)
        if self.broken is not None and self.broken in key:
            raise StorageUnavailable(f"{key!r}: the connection is broken (on purpose)")
