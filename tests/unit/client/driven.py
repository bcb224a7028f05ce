"""A client with prepared responses, without network and without waiting."""

from collections.abc import Callable, Iterable
from typing import Any

import httpx

from cmcl import Client, Retries
from cmcl.client.concurrency import Clock


class FakeClock(Clock):
    """A clock that advances only while something sleeps."""

    def __init__(self) -> None:
        self.paused: list[float] = []

    def now(self) -> float:
        return sum(self.paused)

    def sleep(self, seconds: float) -> None:
        self.paused.append(seconds)


class Driven:
    """A call with prepared outcomes: records requests and pauses."""

    def __init__(
        self,
        call: Callable[[Client], Any],
        outcomes: Iterable[httpx.Response | Exception],
        retries: Retries,
    ) -> None:
        self.sent: list[httpx.Request] = []
        self._left = iter(outcomes)
        clock = FakeClock()
        self.paused = clock.paused
        transport = httpx.MockTransport(self._answer)
        with Client(transport=transport, retries=retries, clock=clock) as client:
            self.result = call(client)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        outcome = next(self._left)
        if isinstance(outcome, Exception):
            raise outcome
        # Prepared once, sent again and again.
        return httpx.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)
