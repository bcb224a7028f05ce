"""A bounded number of files is received at a time, and the uploads of an owner have a byte limit."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import Request

from service.api import limits
from service.api.limits import pieces_of
from service.core.errors import IncompleteBody
from service.core.principal import LOCAL
from tests.fakes.control_plane import ControlPlane
from tests.fakes.uploads import BYTES, announce
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient


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
    plane = ControlPlane(tmp_path, uploads_at_once=1)
    first, second = (f"/v1/uploads/{announce(plane, 3)}/file" for _ in range(2))

    async def ask() -> tuple[httpx.Response, ...]:
        transport = httpx.ASGITransport(plane.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await _while_one_is_on_its_way(client, (first, second))

    arrived, refused, again = asyncio.run(ask())
    assert [each.status_code for each in (arrived, refused, again)] == [200, 429, 200]
    assert int(refused.headers["retry-after"]) >= 1
    plane.close()


def test_places_are_left_for_other_owners_and_given_back(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, uploads_at_once=10)
    upload = announce(plane, 3)
    files, path = plane.app.state.budgets.files, f"/v1/uploads/{upload}/file"
    with files.held(LOCAL.owns_as, 8):
        refused = plane.client.put(path, content=b"abc", headers=BYTES)
        assert (refused.status_code, refused.json()["title"]) == (429, "Too many requests")
        assert "your share" in refused.json()["detail"]
        with files.held("another", 1):
            pass
    for content in (b"ab", b"abc"):
        # Also after one that is refused.
        plane.client.put(path, content=content, headers=BYTES)
        assert files.total == 0
    plane.close()


def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte just before each timeout of the proxy would hold a place without end."""
    monkeypatch.setattr(limits, "GRACE_SECONDS", 0.1)

    async def receive() -> dict[str, object]:
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def take() -> None:
        request = Request({"type": "http", "method": "PUT", "headers": []}, receive)
        async for _ in pieces_of(request):
            pass

    with pytest.raises(IncompleteBody, match=r"0\.1 s more than 65536 bytes/s take"):
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
