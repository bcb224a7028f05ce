"""A store in a dictionary, for thousands of short lives of a replica."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmcl.contract.errors import ObjectExists, ObjectNotFound, StorageUnavailable
from cmcl.storage.object_store import CHUNK_BYTES, Writer, checked_key, checked_prefix


class MemoryStore:
    """See ObjectStore. `objects`: bytes by key; copying the dictionary copies the store."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.uri = "memory://"
        self.objects = {} if objects is None else objects

    def read(self, key: str) -> bytes:
        if (data := self.objects.get(checked_key(key))) is None:
            raise ObjectNotFound(f"there is no object {key!r}")
        return data

    def stream(self, key: str) -> Iterator[bytes]:
        data = self.read(key)
        return (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        return self.read(key)[start:stop]

    def download(self, key: str, path: Path) -> None:
        path.write_bytes(self.read(key))

    def size(self, key: str) -> int:
        return len(self.read(key))

    def put(self, key: str, data: bytes) -> None:
        self.objects[checked_key(key)] = data

    def create(self, key: str, data: bytes) -> None:
        if self.objects.setdefault(checked_key(key), data) is not data:
            raise ObjectExists(f"{key!r} exists already")

    def upload(self, path: Path, key: str) -> None:
        try:
            self.put(key, path.read_bytes())
        except OSError as error:
            raise StorageUnavailable(f"{key!r}: {error}") from error

    @contextmanager
    def writer(self, key: str, size: int) -> Iterator[Writer]:
        checked_key(key)
        written = io.BytesIO()
        yield written
        self.put(key, written.getvalue())

    def keys(self, prefix: str) -> Iterator[str]:
        checked_prefix(prefix)
        yield from sorted(key for key in [*self.objects] if key.startswith(prefix))

    def folders(self, prefix: str) -> list[str]:
        below = (key.removeprefix(prefix).partition("/") for key in self.keys(prefix))
        return sorted({name for name, slash, _ in below if slash})

    def delete(self, key: str) -> None:
        self.objects.pop(checked_key(key), None)
