"""The follower of collections divides its time between the store and the indexes that it builds."""

import threading

import pytest

from tests.unit.serve.collections.scene import EVERYONE, MODEL, Scene, entries
from workers.serve.collections import writes

NAMES = ("one", "two", "three")
# A poll takes as long as two steps.
POLL_SECONDS, STEP_SECONDS = 1.0, 0.5
MOST_POLLS = 100


def test_every_collection_reaches_the_new_version_while_wake_ups_arrive_continually(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        made = writes.create(scene.store, writes.CollectionSpec(name, MODEL, None, "float32"))
        writes.write(scene.store, made, entries(0, 20), EVERYONE)
    follower, ended, done = scene.follower, threading.Event(), list[str]()
    poll, work = follower.poll, follower.work

    def slow_poll() -> None:
        poll()
        done.append("poll")
        scene.clock.now += POLL_SECONDS
        follower.wake()
        snapshots = follower.snapshots().values()
        versions = [each.index.version.number for each in snapshots if each.index is not None]
        if versions == [2] * len(NAMES) or done.count("poll") == MOST_POLLS:
            ended.set()
        elif versions == [1] * len(NAMES):
            scene.swap(2)

    def slow_work() -> bool:
        done.append("work")
        scene.clock.now += STEP_SECONDS
        return work()

    monkeypatch.setattr(follower, "poll", slow_poll)
    monkeypatch.setattr(follower, "work", slow_work)
    follower.start()
    try:
        assert ended.wait(60)
    finally:
        follower.stop()
    assert done.count("poll") < MOST_POLLS
    # Nor does building ignore wake-ups.
    assert max(len(steps.split()) for steps in " ".join(done).split("poll")) == 2
