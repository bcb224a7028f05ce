"""Fair shares: of the event loop by source, of threads by owner, of the database by thread."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.api.concurrency import BODY_BYTES, ConcurrencyLimit, FairSemaphore, RequestSlots
from service.api.connections import LoopScheduler
from service.auth.rate_limiter import SlidingWindow
from service.core.errors import TooManyRequests
from service.core.principal import Principal
from service.core.principal import Scope as KeyScope
from service.database.engine import WriterLock

LARGE = 1 << 20


async def _turns(number: int = 50) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def test_a_source_gets_one_step_in_each_turn_of_the_loop_however_many_it_has() -> None:
    async def order() -> list[str]:
        shares, ran = LoopScheduler(), list[str]()

        def submit(source: str, number: int) -> None:
            shares.submit(source, lambda: ran.append(f"{source}{number}"))

        for number in range(100):
            submit("red", number)
        submit("blue", 0)
        submit("blue", 1)
        await _turns()
        submit("green", 0)
        await _turns(200)
        assert [each for each in ran if each.startswith("red")] == [f"red{n}" for n in range(100)]
        return ran

    ran = asyncio.run(order())
    assert ran[:4] == ["red0", "blue0", "red1", "blue1"]
    assert ran.index("green0") < ran.index("red99")


def test_a_step_that_raises_does_not_stop_those_of_others() -> None:
    async def run() -> list[str]:
        shares, ran = LoopScheduler(), list[str]()
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)

        def fail() -> None:
            raise RuntimeError("a step of the test")

        for source in ("red", "blue"):
            shares.submit(source, lambda: None)
        shares.submit("red", fail)
        for number in range(3):
            shares.submit("blue", lambda number=number: ran.append(str(number)))  # type: ignore[misc]
        await _turns()
        return ran

    assert asyncio.run(run()) == ["0", "1", "2"]


def test_slots_of_an_owner_are_bounded_and_waiting_owners_alternate() -> None:
    async def run() -> None:
        places = FairSemaphore(total=4, of_owner=3, waiting_of_owner=5)
        inside, order, over = Counter[str](), list[str](), asyncio.Event()

        async def work(owner: str) -> None:
            async with places.slot(owner):
                inside[owner] += 1
                order.append(owner)
                await over.wait()
                inside[owner] -= 1

        tasks = [asyncio.create_task(work("red")) for _ in range(8)]
        await _turns()
        assert inside == {"red": 3}
        with pytest.raises(TooManyRequests):
            await work("red")
        tasks += [asyncio.create_task(work("blue")) for _ in range(3)]
        await _turns()
        assert inside == {"red": 3, "blue": 1}
        tasks[-1].cancel()
        over.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order.count("red") == 8
        assert order.count("blue") == 2
        assert order[4:6].count("blue") == 1
        over.clear()
        tasks = [asyncio.create_task(work("red")) for _ in range(3)]
        await _turns()
        assert inside == {"red": 3, "blue": 0}, "every place was given back"
        over.set()
        await asyncio.gather(*tasks)

    asyncio.run(asyncio.wait_for(run(), 60))


class _Requests:
    """Requests of several owners to `ConcurrencyLimit`, which work until `over` is set."""

    def __init__(self, app: Callable[["_Requests", Scope, Receive, Send], Awaitable[None]]) -> None:
        self.over = threading.Event()
        self.at_work = Counter[str]()
        self.most = Counter[str]()
        self.threads: set[int] = set()
        self.statuses = Counter[int]()

        async def enter(scope: Scope, receive: Receive, send: Send) -> None:
            owner = scope["state"]["principal"].owner
            self.threads.add(threading.get_ident())
            self.at_work[owner] += 1
            self.most[owner] = max(self.most[owner], self.at_work[owner])
            await app(self, scope, receive, send)
            self.at_work[owner] -= 1

        self._app = ConcurrencyLimit(enter, RequestSlots())

    def send(self, owner: str, size: int | None) -> asyncio.Task[None]:
        principal = Principal("a-key", owner, frozenset({KeyScope.READ}))
        state = {"principal": principal, BODY_BYTES: size}
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "state": state}

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            if "status" in message:
                self.statuses[message["status"]] += 1

        async def ask() -> None:
            await self._app(scope, receive, send)

        return asyncio.create_task(ask())


async def _answer_when_over(requests: _Requests, _: Scope, receive: Receive, send: Send) -> None:
    await receive()
    while not requests.over.is_set():
        await asyncio.sleep(0.001)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _stream_until_over(requests: _Requests, _: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while not requests.over.is_set():
        await asyncio.sleep(0.001)


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.005)


def test_requests_of_one_owner_at_work_are_bounded_and_another_one_finds_a_place() -> None:
    async def run() -> None:
        requests = _Requests(_answer_when_over)
        red = [requests.send("red", 0) for _ in range(300)]
        blue = requests.send("blue", 0)
        await _until(lambda: requests.at_work["blue"] == 1)
        assert requests.at_work["red"] == 8
        requests.over.set()
        await asyncio.gather(*red, blue)
        assert requests.most["red"] == 8
        assert requests.statuses == {200: 8 + 256 + 1, 429: 300 - 8 - 256}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("app", "size"), [(_stream_until_over, 0), (_answer_when_over, None)], ids=["stream", "file"]
)
def test_streams_and_files_hold_no_place(
    app: Callable[[_Requests, Scope, Receive, Send], Awaitable[None]], size: int | None
) -> None:
    async def run() -> None:
        requests = _Requests(app)
        asked = [requests.send("red", size) for _ in range(50)]
        await _until(lambda: requests.at_work["red"] == 50)
        requests.over.set()
        await asyncio.gather(*asked)

    asyncio.run(run())


def test_large_bodies_of_one_owner_are_worked_on_one_by_one_and_not_on_the_event_loop() -> None:
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
        assert len(requests.threads - {threading.get_ident()}) >= 1

    asyncio.run(run())


def test_a_large_body_is_never_validated_on_the_event_loop() -> None:
    async def run() -> set[int]:
        requests = _Requests(_answer_when_over)
        requests.over.set()
        await requests.send("red", LARGE)
        return requests.threads

    assert threading.get_ident() not in asyncio.run(run())


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


def test_counting_a_request_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise AssertionError("a thread was started")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    window = SlidingWindow(100)
    assert [window.hit("red") for _ in range(101)] == [True] * 100 + [False]
    assert window.hit("blue")


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
