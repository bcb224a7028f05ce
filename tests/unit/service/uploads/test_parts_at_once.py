"""Bodies of parts are taken a few at a time, and one owner's uploads have so many bytes and no more."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from fastapi import Request

from service.api.places import Places
from service.api.spool import spooled
from service.errors import BodyCutOff, TooManyRequests
from tests.fakes.control_plane import ControlPlane
from tests.fakes.uploads import BYTES, announce
from tests.unit.service.access.holder import ADMIN_KEY, Holder


def test_two_places_are_kept_for_other_owners() -> None:
    places = Places(4)
    with places.one("red"), places.one("red"):
        _is_refused(places, "red", "2 parts of your files")
        with places.one("blue"), places.one("green"):
            _is_refused(places, "grey", "4 parts of files")
        with places.one("grey"):
            pass


def _is_refused(places: Places, owner: str, words: str) -> None:
    with pytest.raises(TooManyRequests, match=words), places.one(owner):
        raise AssertionError("there was a place")


def test_a_place_is_free_again_after_whatever_happened() -> None:
    places = Places(2)
    for _ in range(3):
        with pytest.raises(ValueError, match="on purpose"), places.one("red"):
            raise ValueError("on purpose")


async def _while_one_is_on_its_way(
    client: httpx.AsyncClient, path: str
) -> tuple[httpx.Response, ...]:
    """A part that ends once another one was answered; that one; and that one again."""
    began, go_on = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"ab"
        began.set()
        await go_on.wait()
        yield b"c"

    first = asyncio.create_task(client.put(f"{path}/1", content=body(), headers=BYTES))
    async with asyncio.timeout(60):
        await began.wait()
    refused = await client.put(f"{path}/2", content=b"abc", headers=BYTES)
    go_on.set()
    arrived = await first
    again = await client.put(f"{path}/2", content=b"abc", headers=BYTES)
    return arrived, refused, again


def test_a_part_too_many_is_told_when_to_come_again(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, upload_parts_at_once=2)
    path = f"/v1/uploads/{announce(plane, 6)}/parts"

    async def ask() -> tuple[httpx.Response, ...]:
        transport = httpx.ASGITransport(plane.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await _while_one_is_on_its_way(client, path)

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
        async with spooled(request, patience_seconds=0.01):
            raise AssertionError("nothing came")

    with pytest.raises(BodyCutOff, match=r"0 bytes of the body came .* 0\.01 s without"):
        asyncio.run(take())


def test_a_body_that_trickles_is_given_up() -> None:
    """One byte just before the patience ends each time would hold a place without end."""

    async def receive() -> dict[str, object]:
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def take() -> None:
        request = Request({"type": "http", "method": "PUT", "headers": []}, receive)
        async with spooled(request, patience_seconds=0.1):
            raise AssertionError("it never ends")

    with pytest.raises(BodyCutOff, match="more than 65536 bytes/s take"):
        asyncio.run(take())


def test_one_owner_alone_gets_most_places_and_never_all() -> None:
    places = Places(16)
    with ExitStack() as taken:
        for _ in range(14):
            taken.enter_context(places.one("red"))
        with pytest.raises(TooManyRequests, match="14 parts of your files"), places.one("red"):
            pass
        with places.one("blue"), places.one("blue"):
            pass


def test_uploads_of_one_owner_have_so_many_bytes_together(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY, upload_bytes_per_owner_max=10)
    operator = Holder(plane, ADMIN_KEY)
    red, blue = (operator.holder(owner, owner=owner) for owner in ("red", "blue"))
    body = {"filename": "x", "bytes": 6}
    first = red.post("/v1/uploads", json=body).json()["id"]
    refused = red.post("/v1/uploads", json=body)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (409, "bytes")
    assert "permitted are 10" in refused.json()["detail"]
    assert blue.post("/v1/uploads", json=body).status_code == 201
    assert red.request("DELETE", f"/v1/uploads/{first}").status_code == 204
    assert red.post("/v1/uploads", json=body).status_code == 201
    plane.close()
