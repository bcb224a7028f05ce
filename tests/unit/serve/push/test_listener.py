"""A replica wakes for each announcement, outlives the channel, and does without it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.fakes.channel import FakeChannel
from workers.serve.announcements import ChannelLost, Listener

SECONDS = 120.0


@dataclass
class Scene:
    """A listener, and what it opens: the newest channel, or nothing but errors."""

    channel: FakeChannel = field(default_factory=FakeChannel)
    error: Exception | None = None
    opened: int = 0
    hearing: list[bool] = field(default_factory=list)
    wakes: int = 0

    def __post_init__(self) -> None:
        self.listener = Listener(
            self._open, self._wake, self.hearing.append, first_pause_seconds=0.01
        )

    def _open(self) -> FakeChannel:
        self.opened += 1
        if self.error is not None:
            raise self.error
        return self.channel

    def _wake(self) -> None:
        self.wakes += 1

    def announce(self, *models: str) -> None:
        async def inside() -> None:
            for model in models:
                self.listener.announce(model)
            await asyncio.sleep(0.1)

        asyncio.run(inside())


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.listener.stop()
    scene.channel.lose()


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def hearing(scene: Scene) -> Scene:
    scene.listener.start()
    until(lambda: scene.hearing[-1:] == [True])
    until(lambda: scene.wakes == 1)
    return scene


def test_the_first_answer_wakes_because_something_may_have_been_missed(scene: Scene) -> None:
    assert hearing(scene).wakes == 1


def test_each_announcement_wakes_and_silence_does_not(scene: Scene) -> None:
    hearing(scene)
    scene.channel.tell()
    until(lambda: scene.wakes == 2)
    scene.channel.tell()
    until(lambda: scene.wakes == 3)
    time.sleep(0.2)  # Several calls end without news meanwhile.
    assert scene.wakes == 3


@pytest.mark.parametrize("error", [ChannelLost("no cluster"), ValueError("a bug of somebody's")])
def test_a_channel_that_is_lost_is_opened_again(
    scene: Scene, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    hearing(scene)
    old, scene.error = scene.channel, error
    opened = scene.opened
    old.lose()
    until(lambda: scene.opened >= opened + 3)
    assert scene.hearing[-1] is False
    scene.channel = FakeChannel()
    scene.error = None
    until(lambda: scene.hearing[-1] is True)
    wakes = scene.wakes
    scene.channel.tell()
    until(lambda: scene.wakes > wakes)
    assert len([line for line in caplog.messages if "no announcements" in line]) == 1


def test_what_this_replica_is_told_goes_to_all_by_the_channel(scene: Scene) -> None:
    hearing(scene)
    scene.announce("scenes")
    assert scene.channel.announced == ["scenes"]
    until(lambda: scene.wakes == 2)


def test_a_flood_of_announcements_is_passed_on_as_a_few(scene: Scene) -> None:
    hearing(scene)
    scene.announce(*(["scenes"] * 1000))
    assert scene.channel.announced == ["scenes"] * 2


def test_without_a_channel_the_replica_that_was_told_looks_at_least(scene: Scene) -> None:
    scene.error = ChannelLost("no cluster")
    scene.listener.start()
    until(lambda: scene.hearing[-1:] == [False])
    scene.announce("scenes")
    assert scene.wakes == 1


def test_a_listener_that_was_stopped_wakes_nobody(scene: Scene) -> None:
    hearing(scene)
    scene.listener.stop()
    scene.channel.tell()
    until(lambda: "listener" not in {thread.name for thread in threading.enumerate()})
    assert scene.wakes == 1
