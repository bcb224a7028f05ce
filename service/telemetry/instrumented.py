"""A store around another one that measures its calls.

A call is also a span if it is part of a trace.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from cmcl.contract.errors import ObjectExists, ObjectNotFound, StorageUnavailable
from cmcl.storage.object_store import ObjectStore, Writer
from service.telemetry.metrics import Metrics, outcome_of, timed

T = TypeVar("T")

_STORE_OUTCOMES: dict[type[Exception], str] = {
    ObjectNotFound: "not_found",
    ObjectExists: "exists",
    StorageUnavailable: "unavailable",
}
_OTHER = "error"


class InstrumentedStore:
    """See the port, `cmcl.storage.object_store.ObjectStore`."""

    def __init__(self, store: ObjectStore, metrics: Metrics) -> None:
        self.uri = store.uri
        self._store = store
        self._metrics = metrics

    def read(self, key: str) -> bytes:
        with self._call("read", key):
            return self._store.read(key)

    def stream(self, key: str) -> Iterator[bytes]:
        """See the port. Measures the store's time, not the reader's."""
        with self._call("open", key):
            chunks = self._store.stream(key)
        return self._waited("stream", chunks)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        with self._call("read_range", key):
            return self._store.read_range(key, start, stop)

    def download(self, key: str, path: Path) -> None:
        with self._call("download", key):
            self._store.download(key, path)

    def size(self, key: str) -> int:
        with self._call("size", key):
            return self._store.size(key)

    def put(self, key: str, data: bytes) -> None:
        with self._call("put", key):
            self._store.put(key, data)

    def create(self, key: str, data: bytes) -> None:
        with self._call("create", key):
            self._store.create(key, data)

    def upload(self, path: Path, key: str) -> None:
        with self._call("upload", key):
            self._store.upload(path, key)

    @contextmanager
    def writer(self, key: str, size: int) -> Iterator[Writer]:
        with ExitStack() as stack:
            yield stack.enter_context(self._store.writer(key, size))
            # Its end makes the object durable; the time before is the sender's.
            with self._call("writer", key):
                stack.pop_all().close()

    def keys(self, prefix: str) -> Iterator[str]:
        """See the port. Measures the store's time, not the reader's."""
        return self._waited("keys", self._store.keys(prefix))

    def folders(self, prefix: str) -> list[str]:
        with self._call("folders", prefix):
            return self._store.folders(prefix)

    def delete(self, key: str) -> None:
        with self._call("delete", key):
            self._store.delete(key)

    @contextmanager
    def _call(self, operation: str, key: str) -> Iterator[None]:
        span = self._metrics.spans.inside(f"store {operation}", {"cmcl.key": key})
        histogram = self._metrics.store_calls
        with span, timed(histogram, operation, _STORE_OUTCOMES, _OTHER):
            yield

    def _waited(self, operation: str, items: Iterator[T]) -> Iterator[T]:
        """The items; the total waiting time is observed after the last one."""
        waited, outcome = 0.0, "ok"
        try:
            while True:
                started = time.perf_counter()
                try:
                    item = next(items)
                except StopIteration:
                    return
                finally:
                    waited += time.perf_counter() - started
                yield item
        except Exception as error:
            outcome = outcome_of(error, _STORE_OUTCOMES, _OTHER)
            raise
        finally:
            self._metrics.store_calls.labels(operation, outcome).observe(waited)
