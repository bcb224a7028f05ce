"""A replica polls at each announcement, survives the loss of the channel, and works without it."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from fastapi import FastAPI

from cmcl.contract.version import ANNOUNCEMENTS, Announcement
from tests.fakes.app_client import AppClient
from tests.fakes.waiting import until
from workers.serve.announcements import AnnouncementListener, Broadcaster, ChannelLost, Debouncer
from workers.serve.api.app import announcements_router
from workers.serve.api.middleware import install_error_handlers

SECONDS = 120.0


class FakeChannel:
    """See the port, `workers.serve.announcements.Channel`."""

    def __init__(self, wait_seconds: float = 0.05) -> None:
        self.announced: list[str] = []
        self.is_lost = False
        self._wait_seconds = wait_seconds
        self._count = 0
        self._news = threading.Condition()

    def announce(self, model: str) -> None:
        self.announced.append(model)
        if not self.is_lost:
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
        self.listener = AnnouncementListener(
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


def test_an_announcement_reaches_all_replicas_through_the_channel(scene: Scene) -> None:
    hearing(scene)
    scene.announce("scenes")
    assert scene.channel.announced == ["scenes"]
    until(lambda: scene.wakes == 2)


def test_a_flood_of_announcements_is_passed_on_as_a_few(scene: Scene) -> None:
    hearing(scene)
    scene.announce(*(["scenes"] * 1000))
    assert scene.channel.announced == ["scenes"] * 2


def test_without_a_channel_the_notified_replica_polls(scene: Scene) -> None:
    scene.error = ChannelLost("no cluster")
    scene.listener.start()
    until(lambda: scene.hearing[-1:] == [False])
    scene.announce("scenes")
    assert scene.wakes == 1


def test_a_stopped_listener_wakes_no_replica(scene: Scene) -> None:
    hearing(scene)
    scene.listener.stop()
    scene.channel.tell()
    until(lambda: "listener" not in {thread.name for thread in threading.enumerate()})
    assert scene.wakes == 1


LISTENERS = 50


def test_all_waiting_clients_are_notified_at_once() -> None:
    async def inside() -> list[int]:
        broadcaster = Broadcaster(wait_seconds=3600)
        seen = await broadcaster.wait(-1)
        waiting = [asyncio.create_task(broadcaster.wait(seen)) for _ in range(LISTENERS)]
        await asyncio.sleep(0)
        broadcaster.announce()
        async with asyncio.timeout(60):
            return await asyncio.gather(*waiting)

    assert asyncio.run(inside()) == [1] * LISTENERS


def test_a_late_replica_receives_missed_announcements() -> None:
    async def inside() -> list[int]:
        broadcaster = Broadcaster(wait_seconds=0.01)
        broadcaster.announce()
        return [await broadcaster.wait(0), await broadcaster.wait(1), await broadcaster.wait(57)]

    assert asyncio.run(inside()) == [1, 1, 1]


def test_without_news_a_call_ends_with_the_same_number() -> None:
    async def inside() -> int:
        return await Broadcaster(wait_seconds=0.01).wait(0)

    assert asyncio.run(inside()) == 0


@pytest.mark.parametrize(("hits", "beats"), [(1, 1), (2, 2), (1000, 2)])
def test_a_flood_beats_once_now_and_once_later(hits: int, beats: int) -> None:
    async def inside() -> tuple[int, int]:
        beaten: list[None] = []
        debouncer = Debouncer(lambda: beaten.append(None), seconds=0.05)
        for _ in range(hits):
            debouncer.call()
        at_once = len(beaten)
        await asyncio.sleep(0.3)
        return at_once, len(beaten)

    assert asyncio.run(inside()) == (1, beats)


def test_after_a_rest_a_hit_beats_at_once_again() -> None:
    async def inside() -> list[int]:
        beaten: list[int] = []
        debouncer = Debouncer(lambda: beaten.append(1), seconds=0.01)
        counts = []
        for _ in range(3):
            debouncer.call()
            counts.append(len(beaten))
            await asyncio.sleep(0.1)
        return counts

    assert asyncio.run(inside()) == [1, 2, 3]


@pytest.fixture
def announced() -> list[str]:
    """Models that were announced."""
    return []


@pytest.fixture
def client(announced: list[str]) -> AppClient:
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(announcements_router(announced.append))
    return AppClient(app)


def test_announcements_of_the_control_plane_are_forwarded(
    client: AppClient, announced: list[str]
) -> None:
    news = Announcement(model="scenes", generation=4, revision=9)
    answer = client.post(ANNOUNCEMENTS, json=news.model_dump())
    assert answer.status_code == 202
    assert announced == ["scenes"]


def test_unknown_fields_of_an_announcement_are_ignored(
    client: AppClient, announced: list[str]
) -> None:
    body = {"model": "scenes", "generation": 4, "reason": "rolled back"}
    assert client.post(ANNOUNCEMENTS, json=body).status_code == 202
    assert announced == ["scenes"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "body is b''"),
        (b"\xff\xfe", 400, "body"),
        (b"[1]", 400, "body"),
        (b'{"generation": 1}', 400, "model is"),
        (b'{"model": "../../etc", "generation": 1}', 400, "model is '../../etc'"),
        (b'{"model": "scenes", "generation": 0}', 400, "generation is 0"),
        (b'{"model": "scenes", "generation": 1, "revision": -1}', 400, "revision is -1"),
        (json.dumps({"model": "a" * 5000}).encode(), 413, "4096 bytes"),
    ],
)
def test_any_other_announcement_is_rejected_and_wakes_no_replica(
    client: AppClient, announced: list[str], body: bytes, status: int, words: str
) -> None:
    answer = client.post(ANNOUNCEMENTS, content=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert announced == []
