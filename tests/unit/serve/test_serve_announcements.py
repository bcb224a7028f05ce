"""A replica polls at each announcement, survives the loss of the channel, and works without it."""

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from cmcl.contract.version import ANNOUNCEMENTS
from tests.fakes.executor import EndingThreads
from tests.fakes.waiting import until
from tests.unit.serve.conftest import Replica
from workers.serve.announcements import AnnouncementListener, Broadcaster, Channel, ChannelLost
from workers.serve.api.app import create_api


class FakeChannel(Channel):
    """A channel in this process."""

    def __init__(self, wait_seconds: float = 0.05) -> None:
        self.announced = 0
        self.is_lost = False
        self._wait_seconds = wait_seconds
        self._count = 0
        self._news = threading.Condition()

    def announce(self) -> None:
        self.announced += 1
        self.tell()

    def wait(self, seen: int) -> int:
        with self._news:
            self._news.wait_for(lambda: self.is_lost or self._count != seen, self._wait_seconds)
            if self.is_lost:
                raise ChannelLost("the actor died (on purpose)")
            return self._count

    def tell(self) -> None:
        """Publish an announcement."""
        with self._news:
            self._count += 1
            self._news.notify_all()

    def lose(self) -> None:
        """Fail every current and later wait."""
        with self._news:
            self.is_lost = True
            self._news.notify_all()


@dataclass
class Scene:
    """A listener, and the channel that it opens, or the error."""

    channel: FakeChannel = field(default_factory=FakeChannel)
    error: Exception | None = None
    opened: int = 0
    hearing: list[bool] = field(default_factory=list)
    wakes: int = 0

    def __post_init__(self) -> None:
        self.threads = EndingThreads()
        self.listener = AnnouncementListener(
            self._wake, self.hearing.append, self._open, 0.01, self.threads
        )

    def _open(self) -> FakeChannel:
        self.opened += 1
        if self.error is not None:
            raise self.error
        return self.channel

    def _wake(self) -> None:
        self.wakes += 1

    def announce(self, times: int = 1) -> None:
        async def inside() -> None:
            for _ in range(times):
                self.listener.announce()
            await asyncio.sleep(0.1)

        asyncio.run(inside())


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.channel.lose()
    scene.threads.end()


def hearing(scene: Scene) -> Scene:
    scene.listener.start()
    until(lambda: scene.hearing[-1:] == [True])
    until(lambda: scene.wakes == 1)
    return scene


def test_each_announcement_wakes_and_silence_does_not(scene: Scene) -> None:
    hearing(scene)
    scene.channel.tell()
    until(lambda: scene.wakes == 2)
    scene.channel.tell()
    until(lambda: scene.wakes == 3)
    time.sleep(0.2)  # Several calls end without news in that time.
    assert scene.wakes == 3


@pytest.mark.parametrize("error", [ChannelLost("no cluster"), ValueError("a bug")])
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


def test_a_flood_of_announcements_is_passed_on_once_now_and_once_later(scene: Scene) -> None:
    hearing(scene)
    scene.announce(1000)
    assert scene.channel.announced == 2
    scene.announce()
    assert scene.channel.announced == 3


LISTENERS = 50


def test_all_waiting_clients_are_notified_at_once() -> None:
    async def inside() -> list[int]:
        broadcaster = Broadcaster(wait_seconds=3600)
        seen = await broadcaster.wait(-1)
        waiting = [asyncio.create_task(broadcaster.wait(seen)) for _ in range(LISTENERS)]
        await asyncio.sleep(0)
        await broadcaster.announce()
        async with asyncio.timeout(60):
            return await asyncio.gather(*waiting)

    assert asyncio.run(inside()) == [1] * LISTENERS


def test_a_late_replica_receives_missed_announcements() -> None:
    async def inside() -> list[int]:
        broadcaster = Broadcaster(wait_seconds=0.01)
        await broadcaster.announce()
        return [await broadcaster.wait(0), await broadcaster.wait(1), await broadcaster.wait(57)]

    assert asyncio.run(inside()) == [1, 1, 1]


def test_an_announcement_of_the_control_plane_wakes_all_replicas(serving: Replica) -> None:
    """Whatever it says: what has changed is read in the store."""
    announced: list[int] = []
    parts = replace(serving.parts(serving.args), announce=lambda: announced.append(1))
    serving.app = create_api(parts)
    for body in (b'{"model": "scenes", "generation": 4, "revision": 9}', b"", b"\xff"):
        answer = serving.run(lambda client, sent=body: client.post(ANNOUNCEMENTS, content=sent))  # type: ignore[misc]
        assert answer.status_code == 202
    assert announced == [1] * 3
