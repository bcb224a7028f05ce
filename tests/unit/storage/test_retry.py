"""A store that is away for a while is waited for, and each of its objects has the whole patience."""

import pytest

from cmcl.contract.errors import StorageUnavailable
from workers.storage.retry import retry_unavailable


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

    def asked_patiently(self, patience: float) -> str:
        return retry_unavailable(self.read, patience, lambda: self.now, self.sleep)


def test_patience_begins_with_the_first_failure() -> None:
    """An object that was on its way for longer than that is asked for again all the same."""
    store = Store(failures=1, seconds=1000.0)
    assert store.asked_patiently(60.0) == "here"


def test_patience_ends_so_long_after_the_first_failure() -> None:
    store = Store(failures=1000)
    with pytest.raises(StorageUnavailable):
        store.asked_patiently(60.0)
    assert 40.0 <= store.now <= 60.0


def test_each_object_has_the_whole_patience() -> None:
    for store in (Store(failures=6), Store(failures=6)):
        assert store.asked_patiently(60.0) == "here"
