"""An object store in memory. It passes the suite of the port, `tests/ports/test_object_store.py`."""

import bisect
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmcl.contract.errors import ObjectExists, ObjectNotFound, StorageUnavailable
from cmcl.storage.object_store import (
    CHUNK_BYTES,
    PresignedPut,
    checked_key,
    checked_prefix,
)


@dataclass(frozen=True)
class Contents:
    """Objects, and their keys in lexical order. Several stores may have the same."""

    objects: dict[str, bytes] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemoryStore:
    """Objects of one process."""

    uri = "s3://simulation"

    def __init__(self, contents: Contents | None = None) -> None:
        self.contents = contents or Contents()

    def read(self, key: str) -> bytes:
        """See ObjectStore."""
        try:
            return self.contents.objects[checked_key(key)]
        except KeyError:
            raise ObjectNotFound(f"there is no object {key!r}") from None

    def stream(self, key: str) -> Iterator[bytes]:
        """See ObjectStore."""
        data = self.read(key)
        return (data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES))

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """See ObjectStore."""
        return self.read(key)[start:stop]

    def download(self, key: str, path: Path) -> None:
        """See ObjectStore."""
        path.write_bytes(self.read(key))

    def size(self, key: str) -> int:
        """See ObjectStore."""
        return len(self.read(key))

    def put(self, key: str, data: bytes) -> None:
        """See ObjectStore."""
        with self.contents.lock:
            self._put(key, data)

    def create(self, key: str, data: bytes) -> None:
        """See ObjectStore."""
        with self.contents.lock:
            if key in self.contents.objects:
                raise ObjectExists(f"{key} exists already")
            self._put(key, data)

    def upload(self, path: Path, key: str) -> None:
        """See ObjectStore."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StorageUnavailable(str(error)) from error
        self.put(key, data)

    def copy(self, source: str, target: str) -> None:
        """See ObjectStore."""
        self.put(target, self.read(source))

    def compose(self, parts: Sequence[str], target: str) -> None:
        """See ObjectStore."""
        self.put(target, b"".join(map(self.read, parts)))

    def presign_put(
        self, key: str, sha256_hex: str, size: int, seconds: int
    ) -> PresignedPut | None:
        """See ObjectStore. There are no links to memory."""
        checked_key(key)
        return None

    def keys(self, prefix: str) -> Iterator[str]:
        """See ObjectStore."""
        with self.contents.lock:
            start = bisect.bisect_left(self.contents.keys, checked_prefix(prefix))
            stop = bisect.bisect_left(self.contents.keys, f"{prefix}\U0010ffff")
            return iter(self.contents.keys[start:stop])

    def folders(self, prefix: str) -> list[str]:
        """See ObjectStore."""
        rests = (key.removeprefix(prefix) for key in self.keys(prefix))
        return sorted({rest.partition("/")[0] for rest in rests if "/" in rest})

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with self.contents.lock:
            if self.contents.objects.pop(checked_key(key), None) is not None:
                del self.contents.keys[bisect.bisect_left(self.contents.keys, key)]

    def _put(self, key: str, data: bytes) -> None:
        if checked_key(key) not in self.contents.objects:
            bisect.insort(self.contents.keys, key)
        self.contents.objects[key] = data
