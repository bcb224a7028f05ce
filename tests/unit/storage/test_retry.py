"""Calls to an unavailable store are retried, with the full timeout for each object."""

import pytest

from cmcl.contract.errors import StorageUnavailable
from cmcl.storage.object_store import retry_unavailable


class Store:
    """Answers after `failures` refusals, each of which takes `seconds`; sleeping takes its time."""

    def __init__(self, failures: int, seconds: float = 0.0) -> None:
        self.now, self.asked = 0.0, 0
        self._failures, self._seconds = failures, seconds

    def read(self) -> str:
        self.asked += 1
        self.now += self._seconds
        if self.asked <= self._failures:
            raise StorageUnavailable("away")
        return "here"

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def read_with_retries(self, seconds: float) -> str:
        return retry_unavailable(self.read, seconds, lambda: self.now, self.sleep)


def test_timeout_starts_with_the_first_failure() -> None:
    """An object that took longer than that is still requested again."""
    store = Store(failures=1, seconds=1000.0)
    assert store.read_with_retries(60.0) == "here"


def test_retries_end_after_the_timeout() -> None:
    store = Store(failures=1000)
    with pytest.raises(StorageUnavailable):
        store.read_with_retries(60.0)
    assert 40.0 <= store.now <= 60.0


def test_each_object_has_the_full_timeout() -> None:
    for store in (Store(failures=6), Store(failures=6)):
        assert store.read_with_retries(60.0) == "here"
