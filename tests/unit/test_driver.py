"""The loop of the driver on the cluster: its pace, and its end."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cmcl.contract.errors import StorageUnavailable
from cmcl.contract.job import DriverReady
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.local import LocalStore
from tests.fakes.flaky_store import FlakyStore
from workers.driver import Readiness, parse, serve
from workers.train.settings import Ranks


class FakeServer:
    """A server with changes that the test sets."""

    def __init__(self) -> None:
        self.is_idle = True
        self.changes = False
        self.is_broken = False
        self.steps = 0
        self.is_closed = False

    def step(self) -> bool:
        """See `Server`."""
        self.steps += 1
        if self.is_broken:
            raise StorageUnavailable("no answer")
        return self.changes

    def close(self) -> None:
        """See `Server`."""
        self.is_closed = True


class Rounds(threading.Event):
    """The event that ends a driver, which keeps the pauses that are waited for and moves the clock by them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        self.now += timeout
        return self.is_set()

    def after(self, seconds: float, do: Callable[[], None]) -> Callable[[], None]:
        """What ends the driver, or does something else, once the clock has moved so far."""
        return lambda: do() if self.now >= seconds else None


@pytest.fixture
def servers() -> tuple[FakeServer, FakeServer]:
    return FakeServer(), FakeServer()


@pytest.fixture
def rounds() -> Rounds:
    return Rounds()


def test_all_servers_look_in_each_round_and_are_closed_at_the_end(
    servers: tuple[FakeServer, FakeServer], rounds: Rounds
) -> None:
    servers[0].changes = True
    serve(servers, rounds, None, rounds.after(1, rounds.set), rounds)
    assert servers[0].steps == servers[1].steps > 5
    assert [server.is_closed for server in servers] == [True, True]


def test_the_pace_is_high_while_requests_come_and_end_and_low_during_long_work(
    servers: tuple[FakeServer, FakeServer], rounds: Rounds
) -> None:
    servers[1].is_idle = False
    serve(servers, rounds, None, rounds.after(65, rounds.set), rounds)
    assert (rounds.pauses[0], rounds.pauses[-1]) == (0.1, 1.0)
    servers[1].changes = True
    rounds.clear()
    serve(servers, rounds, None, rounds.after(150, rounds.set), rounds)
    assert rounds.pauses[-1] == 0.1


def test_the_driver_ends_after_it_was_idle(
    servers: tuple[FakeServer, FakeServer], rounds: Rounds
) -> None:
    servers[0].is_idle = False

    def finish() -> None:
        servers[0].is_idle = True

    serve(servers, rounds, 25, rounds.after(10, finish), rounds)
    assert 35 <= rounds.now < 36


def test_without_idle_seconds_the_driver_does_not_end(
    servers: tuple[FakeServer, FakeServer], rounds: Rounds
) -> None:
    serve(servers, rounds, None, rounds.after(1e4, rounds.set), rounds)
    assert rounds.now >= 1e4


def test_a_store_that_does_not_respond_is_asked_again_and_its_outage_is_no_idle_time(
    servers: tuple[FakeServer, FakeServer], rounds: Rounds
) -> None:
    servers[0].is_broken = True

    def recover() -> None:
        servers[0].is_broken = False

    serve(servers, rounds, 25, rounds.after(100, recover), rounds)
    assert rounds.now >= 125
    assert max(rounds.pauses) == 10


def test_without_a_store_the_driver_still_ends_when_its_supervisor_has_died(
    servers: tuple[FakeServer, FakeServer], rounds: Rounds
) -> None:
    servers[0].is_broken = True
    serve(servers, rounds, None, rounds.set, rounds)
    assert rounds.is_set()


def test_a_driver_without_ranks_prepares_datasets_only() -> None:
    assert parse(["--store", "file:///store"]).ranks == Ranks(0, 0)
    arguments = parse(["--store", "file:///store", "--ranks", "4", "--min-ranks", "2"])
    assert arguments.ranks == Ranks(4, 2)


class FakePart:
    """A part that has started when the test says so."""

    is_warm = False


def test_the_driver_shows_that_it_is_warm_once_all_parts_have_started(tmp_path: Path) -> None:
    store, parts = FlakyStore(LocalStore(tmp_path)), [FakePart(), FakePart()]
    readiness = Readiness(store, parts, ranks=2)
    readiness.look()
    parts[0].is_warm = True
    readiness.look()
    assert store.calls == []
    parts[1].is_warm = True
    store.broken = layout.driver_ready()
    readiness.look()
    assert list(store.keys("")) == []
    store.broken = None
    readiness.look()
    assert read_document(store, layout.driver_ready(), DriverReady).ranks == 2
    store.calls.clear()
    readiness.look()
    assert store.calls == [], "it is shown once"
