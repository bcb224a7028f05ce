"""What polls a slow store; tests/faults/test_endpoint_schedules.py has what a replica owes to requests meanwhile."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmcl.contract.errors import StorageUnavailable
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import ObjectStore
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.waiting import until
from tests.unit.serve.conftest import POLL_SECONDS, Replica
from workers.serve.settings import ServeSettings

NEVER = 3600.0
TIMEOUT = 60.0


@pytest.fixture
def sleeping(store: FlakyStore) -> Iterator[Replica]:
    """A follower that polls once a minute."""
    replica = Replica(store, ServeSettings(store=store.uri))
    replica.publish(version=1)
    replica.follow(NEVER)
    assert replica.live.readiness.wait(TIMEOUT)
    yield replica
    replica.following.end()


def test_many_wake_ups_are_few_polls(sleeping: Replica) -> None:
    store = sleeping.store
    began, before = time.monotonic(), store.calls.count("models/")
    for _ in range(10_000):
        sleeping.follower.wake()
    looks = store.calls.count("models/") - before
    assert looks <= (time.monotonic() - began) / 0.02 + 2


class DistantStore(FlakyStore):
    """A store in which reading a pointer takes longer than the shortest pause between two polls."""

    def read(self, key: str) -> bytes:
        if key.endswith("live.json"):
            time.sleep(0.1)
        return super().read(key)


def test_wake_ups_without_end_keep_no_model_from_its_turn(tmp_path: Path) -> None:
    """With more models than reading threads."""
    distant = DistantStore(LocalStore(tmp_path / "store"))
    replica = Replica(distant, ServeSettings(store=distant.uri))
    models = [f"model-{number}" for number in range(7)]
    stop = threading.Event()

    replica.follow(NEVER)

    def wake_without_end() -> None:
        while not stop.wait(0.001):
            replica.follower.wake()

    waking = threading.Thread(target=wake_without_end)
    waking.start()
    try:
        for model in models:
            replica.publish(version=1, model=model)
        until(lambda: all(replica.live_number(model) == 1 for model in models))
    finally:
        stop.set()
        waking.join()
        replica.following.end()


@pytest.mark.parametrize("error", [StorageUnavailable("no store"), ZeroDivisionError()])
def test_what_else_is_followed_may_fail(
    replica: Replica, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[str] = []

    def read_keys(store: ObjectStore) -> None:
        looks.append(store.uri)
        raise error

    replica.follower = replica.follower_of(replica.threads, POLL_SECONDS, [read_keys])
    replica.publish(version=1)
    replica.poll()
    replica.poll()
    assert replica.live_number() == 1
    assert looks == [replica.store.uri] * 2
    assert "read_keys" in caplog.text


def test_what_else_is_followed_may_hang(replica: Replica) -> None:
    release = threading.Event()

    def hang(store: ObjectStore) -> None:
        assert release.wait(TIMEOUT)

    replica.publish(version=1)
    replica.follow(tasks=[hang])
    assert replica.live.readiness.wait(TIMEOUT)
    replica.publish(version=2)
    until(lambda: replica.live_number() == 2)
    release.set()
    replica.following.end()
