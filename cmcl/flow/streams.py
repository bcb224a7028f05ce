"""Bytes of an event stream, as the library that reads events wants them, with an end to the waiting.

A server that has nothing to tell sends heartbeats, so no timeout of a read ever ends a stream.
"""

from collections.abc import AsyncIterator, Callable, Iterator

import httpx

Clock = Callable[[], float]


class BoundedBytes(httpx.SyncByteStream):
    """Until the clock says so; then httpx.ReadTimeout."""

    def __init__(self, response: httpx.Response, until: float, clock: Clock) -> None:
        self._response, self._until, self._clock = response, until, clock

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._response.iter_bytes():
            yield chunk
            _check(self._response, self._until, self._clock)


class BoundedAsyncBytes(httpx.AsyncByteStream):
    """The same, awaited."""

    def __init__(self, response: httpx.Response, until: float, clock: Clock) -> None:
        self._response, self._until, self._clock = response, until, clock

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_bytes():
            yield chunk
            _check(self._response, self._until, self._clock)


def bounded(
    response: httpx.Response, stream: httpx.SyncByteStream | httpx.AsyncByteStream
) -> httpx.Response:
    """The same response over that stream."""
    kept = {"content-type": response.headers.get("content-type", "")}
    return httpx.Response(response.status_code, headers=kept, stream=stream)


def patience(until: float, clock: Clock, longest: float) -> float:
    """Seconds that one read may take."""
    return max(0.001, min(longest, until - clock()))


def _check(response: httpx.Response, until: float, clock: Clock) -> None:
    if clock() >= until:
        raise httpx.ReadTimeout("the time for listening is over", request=response.request)
