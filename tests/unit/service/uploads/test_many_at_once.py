"""Concurrent completions wait for each other, and no other request waits for them."""

import asyncio
import threading
from dataclasses import replace

import httpx

from service.api.uploads import COMPLETED_AT_ONCE
from tests.fakes.control_plane import ControlPlane
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.uploads import announce, send


class SlowStore(FlakyStore):
    """Nothing is composed before `go`; `inside` of the calls wait, `most` ever did at a time."""

    def __init__(self, store: FlakyStore) -> None:
        super().__init__(store)
        self.go = threading.Event()
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def compose(self, parts: object, target: str) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.go.wait(60)
        with self._lock:
            self.inside -= 1
        super().compose(parts, target)  # type: ignore[arg-type]


async def complete_all(
    plane: ControlPlane, uploads: list[str], slow: SlowStore
) -> list[httpx.Response]:
    """All of them at once, with a request to another route in between."""
    transport = httpx.ASGITransport(plane.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        completing = [
            asyncio.create_task(client.post(f"/v1/uploads/{upload}/complete")) for upload in uploads
        ]
        async with asyncio.timeout(60):
            while slow.inside < COMPLETED_AT_ONCE:
                await asyncio.sleep(0.01)
        for upload in uploads:
            assert (await client.get(f"/v1/uploads/{upload}")).status_code == 200
        slow.go.set()
        return await asyncio.gather(*completing)


def test_completing_uses_a_bounded_number_of_threads(plane: ControlPlane) -> None:
    uploads = [announce(plane, 3) for _ in range(50)]
    for upload in uploads:
        send(plane, upload, 1, b"abc")
    slow = SlowStore(plane.store)
    plane.app.state.context = replace(plane.context, store=slow)
    answers = asyncio.run(complete_all(plane, uploads, slow))
    assert [answer.status_code for answer in answers] == [200] * len(uploads)
    assert slow.most == COMPLETED_AT_ONCE
