"""A bounded number of files is received at a time, and the uploads of an owner have a byte limit."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from fastapi import Request

from service.api.concurrency import STALLED_SECONDS, UploadSlots
from service.api.streamed import pieces_of
from service.core.errors import IncompleteBody, TooManyRequests
from tests.fakes.control_plane import ControlPlane
from tests.fakes.uploads import BYTES, announce
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient
from workers.flow_control import Pace


def test_an_owner_has_a_share_of_the_places() -> None:
    places = UploadSlots(8, 2)
    with ExitStack() as taken:
        for owner in ("red", "blue", "green"):
            for _ in range(2):
                taken.enter_context(places.one(owner))
        _is_refused(places, "red", "2 of your files")
        with places.one("grey"), places.one("white"):
            _is_refused(places, "black", "8 files are")
        with places.one("black"):
            pass


def _is_refused(places: UploadSlots, owner: str, words: str) -> None:
    with pytest.raises(TooManyRequests, match=words), places.one(owner):
        raise AssertionError("there was a place")


def test_a_slot_is_released_after_every_outcome() -> None:
    places = UploadSlots(2, 1)
    for _ in range(3):
        with pytest.raises(ValueError, match="on purpose"), places.one("red"):
            raise ValueError("on purpose")


async def _while_one_is_on_its_way(
    client: httpx.AsyncClient, paths: tuple[str, str]
) -> tuple[httpx.Response, ...]:
    """A file that ends once another one was answered; that one; and that one again."""
    began, go_on = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"ab"
        began.set()
        await go_on.wait()
        yield b"c"

    first = asyncio.create_task(client.put(paths[0], content=body(), headers=BYTES))
    async with asyncio.timeout(60):
        await began.wait()
    refused = await client.put(paths[1], content=b"abc", headers=BYTES)
    go_on.set()
    arrived = await first
    again = await client.put(paths[1], content=b"abc", headers=BYTES)
    return arrived, refused, again


def test_a_file_above_the_limit_gets_retry_after(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, uploads_at_once=(4, 1))
    first, second = (f"/v1/uploads/{announce(plane, 3)}/file" for _ in range(2))

    async def ask() -> tuple[httpx.Response, ...]:
        transport = httpx.ASGITransport(plane.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await _while_one_is_on_its_way(client, (first, second))

    arrived, refused, again = asyncio.run(ask())
    assert [each.status_code for each in (arrived, refused, again)] == [200, 429, 200]
    assert int(refused.headers["retry-after"]) >= 1
    plane.close()


def test_a_body_that_stops_to_come_is_given_up() -> None:
    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        raise AssertionError("nothing comes")

    async def take() -> None:
        request = Request({"type": "http", "method": "PUT", "headers": []}, receive)
        async for _ in pieces_of(request, Pace(idle_timeout_seconds=0.01)):
            raise AssertionError("nothing came")

    with pytest.raises(IncompleteBody, match=r"0 bytes of the body arrived .* 0\.01 s without"):
        asyncio.run(take())


def test_a_body_that_trickles_is_given_up() -> None:
    """One byte just before each timeout would hold a slot without end."""

    async def receive() -> dict[str, object]:
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def take() -> None:
        request = Request({"type": "http", "method": "PUT", "headers": []}, receive)
        async for _ in pieces_of(request, Pace(idle_timeout_seconds=0.1)):
            pass

    with pytest.raises(IncompleteBody, match="more than 65536 bytes/s take"):
        asyncio.run(take())


class Bodies:
    """Parts of several owners that hold places, and bring bytes when the test says so."""

    def __init__(self, total: int) -> None:
        self.now = 0.0
        self.places = UploadSlots(total, total - 2, lambda: self.now)
        self.sent: dict[str, asyncio.Queue[bytes]] = {}
        self.tasks: dict[str, asyncio.Task[int]] = {}

    async def begin(self, name: str) -> None:
        """A part that waits for its first bytes; its owner is the name's first letter."""
        self.sent[name] = asyncio.Queue()
        self.tasks[name] = asyncio.create_task(self._take(name))
        await self.turn()

    async def _take(self, name: str) -> int:
        async def receive() -> dict[str, object]:
            body = await self.sent[name].get()
            return {"type": "http.request", "body": body, "more_body": bool(body)}

        with self.places.one(name[0]) as place:
            request = Request({"type": "http", "method": "PUT", "headers": []}, receive)
            return sum([len(piece) async for piece in place.watch(request).stream()])

    async def send(self, name: str, size: int) -> None:
        """So many bytes; 0 ends the body."""
        self.sent[name].put_nowait(b"x" * size)
        await self.turn()

    async def turn(self) -> None:
        """Run until nothing more can happen."""
        for _ in range(10):
            await asyncio.sleep(0)

    def refused(self) -> set[str]:
        """Parts that were answered 429."""
        return {
            name
            for name, task in self.tasks.items()
            if task.done() and isinstance(task.exception(), TooManyRequests)
        }


def test_stalled_parts_release_their_slots_and_others_continue() -> None:
    async def take() -> None:
        bodies = Bodies(5)
        for name in ("red", "rest", "ruby", "blue", "best"):
            await bodies.begin(name)
        bodies.now = STALLED_SECONDS - 0.1
        await bodies.begin("green")
        assert bodies.refused() == {"green"}
        for name in ("red", "ruby"):
            await bodies.send(name, 1 << 20)
        bodies.now = STALLED_SECONDS + 0.1
        await bodies.begin("great")
        # Parts of blue are stalled as well, but red has more places.
        assert bodies.refused() == {"green", "rest"}
        for name in ("red", "ruby", "blue", "best", "great"):
            await bodies.send(name, 0)
        assert {bodies.tasks[name].result() for name in ("red", "great")} == {1 << 20, 0}

    asyncio.run(take())


def test_an_owner_with_fewer_places_keeps_a_stalled_one() -> None:
    async def take() -> None:
        bodies = Bodies(3)
        for name in ("red", "blue", "green"):
            await bodies.begin(name)
        bodies.now = 60
        await bodies.send("red", 4 << 20)
        await bodies.begin("rest")
        assert bodies.refused() == {"rest"}
        for name in ("red", "blue", "green"):
            await bodies.send(name, 0)

    asyncio.run(take())


def test_a_part_that_trickles_is_stalled_as_well() -> None:
    async def take() -> None:
        bodies = Bodies(4)
        for name in ("red", "rest", "blue", "best"):
            await bodies.begin(name)
        for second in range(1, 8):
            bodies.now = second
            for name in ("rest", "blue", "best"):
                await bodies.send(name, 1 << 20)
            await bodies.send("red", 1)
        await bodies.begin("green")
        assert bodies.refused() == {"red"}
        for name in ("rest", "blue", "best", "green"):
            await bodies.send(name, 0)

    asyncio.run(take())


def test_an_owners_own_stalled_part_makes_room_for_its_next_one() -> None:
    async def take() -> None:
        bodies = Bodies(4)
        for name in ("red", "rest"):
            await bodies.begin(name)
        await bodies.begin("ruby")
        assert bodies.refused() == {"ruby"}
        bodies.now = 60
        await bodies.begin("rose")
        assert bodies.refused() - {"ruby"} <= {"red", "rest"}
        assert len(bodies.refused()) == 2
        for name in {"red", "rest", "rose"} - bodies.refused():
            await bodies.send(name, 0)

    asyncio.run(take())


def test_uploads_of_one_owner_have_so_many_bytes_together(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY, upload_bytes_per_owner_max=10)
    operator = KeyClient(plane, ADMIN_KEY)
    red, blue = (operator.client_with_key(owner, owner=owner) for owner in ("red", "blue"))
    body = {"filename": "x", "bytes": 6}
    first = red.post("/v1/uploads", json=body).json()["id"]
    refused = red.post("/v1/uploads", json=body)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (409, "bytes")
    assert "permitted are 10" in refused.json()["detail"]
    assert blue.post("/v1/uploads", json=body).status_code == 201
    assert red.request("DELETE", f"/v1/uploads/{first}").status_code == 204
    assert red.post("/v1/uploads", json=body).status_code == 201
    plane.close()
