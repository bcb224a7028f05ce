"""A store whose calls wait for the test."""

import threading
from collections.abc import Iterator

from cmcl.storage.object_store import ObjectStore
from tests.fakes.flaky_store import FlakyStore

_LONGEST_SECONDS = 60


class SlowStore(FlakyStore):
    """Reading and listing keys that end with `slow` waits for `answer`; `asked` is set when one does."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self.slow: str | None = None
        self.asked = threading.Event()
        self.answer = threading.Event()

    def read(self, key: str) -> bytes:
        data = super().read(key)
        self._wait(key, self.slow)
        return data

    def stream(self, key: str) -> Iterator[bytes]:
        chunks = super().stream(key)
        self._wait(key, self.slow)
        return chunks

    def folders(self, prefix: str) -> list[str]:
        self._wait(prefix, self.slow)
        return super().folders(prefix)

    def _wait(self, key: str, slow: str | None) -> None:
        if slow is not None and key.endswith(slow):
            self.asked.set()
            if not self.answer.wait(_LONGEST_SECONDS):
                raise TimeoutError(f"{key!r} was never answered")
