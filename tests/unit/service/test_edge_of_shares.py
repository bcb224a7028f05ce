"""Fair shares: of requests and responses by owner, of the database by thread."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from cmcl.contract.api.access import Scope as KeyScope
from cmcl.fairness import OverLimit
from service.api.dependencies import BYTES
from service.api.limits import Budgets, OwnerLimits
from service.auth.rate_limiter import SlidingWindow
from service.core.principal import Principal
from service.database.engine import WriterLock

LARGE = 1 << 20
PIECE = 64 << 10


async def _nothing() -> None:
    """The endpoint of the routes, which is not called."""


_FILE: dict[str, object] = {"requestBody": {"content": {BYTES: {}}}}
ROUTES = {
    "body": APIRoute("/", _nothing, name="post_dataset"),
    "file": APIRoute("/", _nothing, openapi_extra=_FILE),
}
App = Callable[["_Requests", Scope, Receive, Send], Awaitable[None]]


class _Requests:
    """Requests of several owners to `OwnerLimits`, which work until `over` is set."""

    def __init__(self, app: App) -> None:
        self.over = asyncio.Event()
        self.at_work = Counter[str]()
        self.most = Counter[str]()
        self.statuses = Counter[int]()
        self.budgets = Budgets(file_bytes=LARGE, files_at_once=1)

        async def enter(scope: Scope, receive: Receive, send: Send) -> None:
            owner = scope["state"]["principal"].owner
            if "content-length" in Headers(scope=scope):
                await receive()
            self.at_work[owner] += 1
            self.most[owner] = max(self.most[owner], self.at_work[owner])
            await app(self, scope, receive, send)
            self.at_work[owner] -= 1

        self._app = OwnerLimits(enter, self.budgets)

    def send(self, owner: str, size: int, kind: str = "body") -> asyncio.Task[None]:
        """A request with a body of that size; one without a body has 0."""
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "headers": [(b"content-length", b"%d" % size)] if size else [],
            "route": ROUTES[kind],
            "state": {"principal": Principal("a-key", owner, frozenset({KeyScope.READ}))},
        }

        async def receive() -> Message:
            return {"type": "http.request", "body": b" " * size, "more_body": False}

        async def send(message: Message) -> None:
            if "status" in message:
                self.statuses[message["status"]] += 1

        async def ask() -> None:
            await self._app(scope, receive, send)

        return asyncio.create_task(ask())


async def _answer_when_over(requests: _Requests, _: Scope, receive: Receive, send: Send) -> None:
    await requests.over.wait()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _stream_until_over(requests: _Requests, _: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await requests.over.wait()


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.005)


def test_requests_of_one_owner_at_work_are_bounded_and_another_one_finds_a_place() -> None:
    async def run() -> None:
        requests = _Requests(_answer_when_over)
        red = [requests.send("red", number % 2) for number in range(300)]
        blue = requests.send("blue", 0)
        await _until(lambda: requests.at_work["blue"] == 1)
        assert requests.at_work["red"] == 8
        await _until(lambda: requests.statuses[429] > 0)
        requests.over.set()
        answers = await asyncio.gather(*red, blue, return_exceptions=True)
        assert requests.most["red"] == 8
        # Within the app, which answers it, a request with a body is refused by `receive`.
        refused = sum(isinstance(each, OverLimit) for each in answers) + requests.statuses[429]
        assert (requests.statuses[200], refused) == (8 + 256 + 1, 300 - 8 - 256)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("app", "size", "kind"),
    [(_stream_until_over, 0, "body"), (_answer_when_over, 1000, "file")],
    ids=["stream", "file"],
)
def test_streams_and_files_hold_no_place(app: App, size: int, kind: str) -> None:
    async def run() -> None:
        requests = _Requests(app)
        asked = [requests.send("red", size, kind) for _ in range(50)]
        await _until(lambda: requests.at_work["red"] == 50)
        requests.over.set()
        await asyncio.gather(*asked)

    asyncio.run(run())


def test_large_bodies_of_one_owner_are_worked_on_one_by_one() -> None:
    async def run() -> None:
        requests = _Requests(_answer_when_over)
        asked = [requests.send("red", LARGE) for _ in range(4)]
        asked += [requests.send("blue", LARGE), requests.send("red", 0)]
        await _until(lambda: requests.at_work == {"red": 2, "blue": 1})
        requests.over.set()
        await asyncio.gather(*asked)
        # One large one and the small one.
        assert requests.most == {"red": 2, "blue": 1}
        assert requests.statuses == {200: 6}
        assert requests.budgets.bodies.total == 0

    asyncio.run(run())


def test_large_responses_of_one_owner_that_are_not_taken_are_few() -> None:
    """Others get theirs, and so do small requests of the same owner."""

    async def run() -> None:
        is_taken, begun, pieces = asyncio.Event(), Counter[str](), list[int]()

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            size = LARGE if scope["path"] == "/large" else 10
            headers = [(b"content-length", b"%d" % size)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"a" * size})

        limits = OwnerLimits(answer, Budgets(file_bytes=LARGE, files_at_once=1))

        def ask(owner: str, path: str) -> asyncio.Task[None]:
            principal = Principal("a-key", owner, frozenset({KeyScope.READ}))
            state = {"principal": principal}
            scope = {"type": "http", "path": path, "headers": [], "state": state}

            async def send(message: Message) -> None:
                if "status" in message:
                    begun[owner + path] += 1
                    return
                pieces.append(len(message["body"]))
                if path == "/large":
                    await is_taken.wait()

            return asyncio.create_task(limits(scope, _never, send))

        asked = [ask("red", "/large") for _ in range(20)]
        await _until(lambda: begun["red/large"] == 8)
        # The others hold the places of the owner until their turn, and no more are in memory.
        asked.append(ask("blue", "/large"))
        await _until(lambda: begun["blue/large"] == 1)
        assert begun["red/large"] == 8
        is_taken.set()
        await asyncio.gather(*asked)
        assert begun["red/large"] == 20
        assert max(pieces) == PIECE
        assert sum(pieces) == 21 * LARGE

    asyncio.run(asyncio.wait_for(run(), 60))


async def _never() -> Message:
    raise AssertionError("there is no body")


def test_writers_are_served_in_the_order_of_arrival() -> None:
    lock, order, asked = WriterLock(), list[int](), threading.Semaphore(0)

    def write(number: int) -> None:
        asked.release()
        with lock:
            order.append(number)

    with lock:
        threads = []
        for number in range(20):
            thread = threading.Thread(target=write, args=[number])
            thread.start()
            threads.append(thread)
            assert asked.acquire(timeout=30)
            deadline = time.monotonic() + 30
            while len(lock._waiting) < number + 1 and time.monotonic() < deadline:
                time.sleep(0.001)
    # Asks again at once, behind all of them.
    with lock:
        order.append(-1)
    for thread in threads:
        thread.join(30)
    assert order == [*range(20), -1]


def test_no_minute_has_more_hits_than_the_limit_if_they_are_spread_evenly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    window, taken = SlidingWindow(60), list[float]()
    for second in range(600):
        monkeypatch.setattr(time, "time", lambda second=second: 1_800_000_000.0 + second)
        taken += [second for _ in range(3) if window.hit("red")]
    most = max(sum(since <= each < since + 60 for each in taken) for since in range(540))
    assert most <= 2 * 60
    assert len(taken) <= 60 * 11
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0 + 10_000)
    assert window.hit("red")
