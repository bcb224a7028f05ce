"""A slow store delays no request, and a new version is swapped in at once."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cmcl.contract.errors import StorageUnavailable
from cmcl.contract.version import LivePointer
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import write_live
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.slow_store import SlowStore
from tests.fakes.versions import random_heads, store_version
from tests.fakes.waiting import until
from tests.unit.serve.conftest import MODEL, POLL_SECONDS, SPEC, Replica
from workers.serve.settings import ServeSettings
from workers.serve.versions.follower import Follower, Swapper

NEVER = 3600.0
TIMEOUT = 60.0


@pytest.fixture
def slow(tmp_path: Path) -> SlowStore:
    return SlowStore(LocalStore(tmp_path / "store"))


@pytest.fixture
def following(slow: SlowStore) -> Iterator[Replica]:
    """Two models at version 1, and a follower that polls continuously."""
    replica = Replica(slow, ServeSettings(store=slow.uri))
    replica.publish(version=1)
    replica.publish(version=1, model="other")
    swapper = Swapper(replica.live, replica.cache, replica.metrics)
    replica.follower = Follower(slow, replica.live, swapper, POLL_SECONDS)
    replica.follower.start()
    assert replica.live.readiness.wait(TIMEOUT)
    yield replica
    slow.answer.set()
    replica.follower.stop()


@pytest.mark.parametrize("slow_part", ["scenes/live.json", "heads"])
def test_a_slow_model_delays_no_other_model(
    following: Replica, slow: SlowStore, slow_part: str
) -> None:
    slow.slow = following.store_heads(2) if slow_part == "heads" else slow_part
    following.publish(version=2)
    assert slow.asked.wait(TIMEOUT)
    following.publish(version=2, model="other")
    until(lambda: following.live_number("other") == 2)
    assert following.live_number() == 1
    slow.answer.set()
    until(lambda: following.live_number() == 2)


def test_a_listing_that_hangs_delays_no_model_that_is_known(
    following: Replica, slow: SlowStore
) -> None:
    slow.slow = "models/"
    until(slow.asked.is_set)
    slow.slow = None
    following.publish(version=2)
    until(lambda: following.live_number() == 2)


def test_a_roll_back_does_not_wait_for_a_slow_load(following: Replica, slow: SlowStore) -> None:
    following.publish(version=2)
    until(lambda: following.live_number() == 2)
    slow.slow = following.store_heads(3)
    following.publish(version=3)
    assert slow.asked.wait(TIMEOUT)
    following.point(generation=4, version=1)
    until(lambda: following.live_number() == 1)
    slow.answer.set()
    following.follower.poll()
    assert following.live_number() == 1
    assert following.metrics.swaps[-1] == (MODEL, 1)


def test_a_model_deleted_while_it_loads_stays_deleted(following: Replica, slow: SlowStore) -> None:
    slow.slow = following.store_heads(2)
    following.publish(version=2)
    assert slow.asked.wait(TIMEOUT)
    slow.delete("models/scenes/live.json")
    until(lambda: following.live_number() is None)
    slow.answer.set()
    following.follower.poll()
    assert following.live_number() is None
    assert following.cache.get(MODEL, 2) is None


def test_ready_only_once_every_model_was_tried(slow: SlowStore) -> None:
    replica = Replica(slow, ServeSettings(store=slow.uri))
    replica.publish(version=1)
    replica.publish(version=1, model="other")
    slow.slow = replica.store_heads(1)
    replica.follower.start()
    until(lambda: replica.live_number("other") == 1)
    assert not replica.live.readiness.ready
    slow.answer.set()
    assert replica.live.readiness.wait(TIMEOUT)
    assert replica.live_number() == 1
    replica.follower.stop()


def test_stopping_does_not_wait_for_a_store_that_hangs(slow: SlowStore) -> None:
    replica = Replica(slow, ServeSettings(store=slow.uri))
    slow.slow = "models/"
    replica.follower.start()
    assert slow.asked.wait(TIMEOUT)
    replica.follower.stop()
    assert not replica.follower.alive
    slow.answer.set()


@pytest.fixture
def sleeping(store: FlakyStore) -> Iterator[Replica]:
    """A follower that polls once a minute."""
    replica = Replica(store, ServeSettings(store=store.uri))
    swapper = Swapper(replica.live, replica.cache, replica.metrics)
    replica.follower = Follower(store, replica.live, swapper, NEVER)
    replica.publish(version=1)
    replica.follower.start()
    assert replica.live.readiness.wait(TIMEOUT)
    yield replica
    replica.follower.stop()


def test_a_woken_replica_polls_at_once(sleeping: Replica) -> None:
    sleeping.publish(version=2)
    sleeping.follower.wake()
    until(lambda: sleeping.live_number() == 2)
    assert sleeping.metrics.swap_seconds[-1] < NEVER


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
    swapper = Swapper(replica.live, replica.cache, replica.metrics)
    replica.follower = Follower(distant, replica.live, swapper, NEVER)
    stop = threading.Event()

    def wake_without_end() -> None:
        while not stop.wait(0.001):
            replica.follower.wake()

    waking = threading.Thread(target=wake_without_end)
    waking.start()
    replica.follower.start()
    try:
        for model in models:
            replica.publish(version=1, model=model)
        until(lambda: all(replica.live_number(model) == 1 for model in models))
    finally:
        stop.set()
        waking.join()
        replica.follower.stop()


def test_what_is_written_during_a_look_is_seen_after_it(tmp_path: Path) -> None:
    slow = SlowStore(LocalStore(tmp_path / "store"))
    replica = Replica(slow, ServeSettings(store=slow.uri))
    swapper = Swapper(replica.live, replica.cache, replica.metrics)
    replica.follower = Follower(slow, replica.live, swapper, NEVER)
    replica.publish(version=1)
    replica.follower.start()
    assert replica.live.readiness.wait(TIMEOUT)
    store_version(slow, MODEL, 2, SPEC, random_heads(SPEC, seed=2))
    slow.slow = "live.json"
    replica.follower.wake()
    assert slow.asked.wait(TIMEOUT)
    slow.slow = None
    write_live(slow, MODEL, LivePointer(generation=2, version=2))
    replica.follower.wake()
    slow.answer.set()
    until(lambda: replica.live_number() == 2)
    replica.follower.stop()


def follow_beside(replica: Replica, task: Callable[[ObjectStore], None]) -> None:
    swapper = Swapper(replica.live, replica.cache, replica.metrics, replica.clock)
    replica.follower = Follower(replica.store, replica.live, swapper, 0.01, tasks=[task])


@pytest.mark.parametrize("error", [StorageUnavailable("no store"), ZeroDivisionError()])
def test_what_else_is_followed_may_fail(
    replica: Replica, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[str] = []

    def read_keys(store: ObjectStore) -> None:
        looks.append(store.uri)
        raise error

    follow_beside(replica, read_keys)
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

    follow_beside(replica, hang)
    replica.publish(version=1)
    replica.follower.start()
    assert replica.live.readiness.wait(TIMEOUT)
    replica.publish(version=2)
    until(lambda: replica.live_number() == 2)
    release.set()
    replica.follower.stop()
