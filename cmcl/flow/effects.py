"""What a request to the service consists of, as data: the calls say what they need, and do nothing.

A call is a generator, a `Flow`: it yields an effect, is sent what came of it, and returns its
result. Two small loops carry flows out, one that blocks and one that awaits, so no call is written
twice, and tests drive one by hand.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx
from httpx_sse import ServerSentEvent

T = TypeVar("T")

Params = Mapping[str, str | list[str]]


class Side(StrEnum):
    """Who is asked. The key goes to our two sides, never elsewhere."""

    SERVICE = "service"
    EMBEDDINGS = "embeddings"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Exchange:
    """One HTTP request. Answered with the whole httpx.Response, whatever its status.

    Thrown into the flow: httpx.TransportError.
    """

    method: str
    path: str
    side: Side = Side.SERVICE
    params: Params = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class SendFile:
    """The same with a whole file as the body, which is never in memory as a whole."""

    exchange: Exchange
    path: Path


@dataclass(frozen=True)
class Listen:
    """Open a stream of events. Answered with the response: `is_stream` says whether it is one.

    From then on `NextEvent` is answered from it. `until`, in the client's clock, is when both are
    thrown an httpx.ReadTimeout at the latest.
    """

    exchange: Exchange
    until: float


@dataclass(frozen=True)
class NextEvent:
    """Answered with the stream's next event; None when the server has ended it."""


@dataclass(frozen=True)
class Pause:
    """Wait for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Something that takes its time without waiting for the network, such as reading a file.

    Answered with what it returns. Thrown into the flow: OSError.
    """

    do: Callable[[], object]


@dataclass(frozen=True)
class Item(Generic[T]):
    """Hand one item of a list to whoever iterates."""

    value: T


Effect = Exchange | SendFile | Listen | NextEvent | Pause | Work
Flow = Generator[Effect, Any, T]
Items = Generator[Effect | Item[T], Any, None]


def exchange(request: Exchange) -> Flow[httpx.Response]:
    """`yield`, with the type of the answer."""
    response: httpx.Response = yield request
    return response


def send_file(request: SendFile) -> Flow[httpx.Response]:
    """`yield`, with the type of the answer."""
    response: httpx.Response = yield request
    return response


def listen(request: Listen) -> Flow[httpx.Response]:
    """`yield`, with the type of the answer."""
    response: httpx.Response = yield request
    return response


def next_event() -> Flow[ServerSentEvent | None]:
    """`yield`, with the type of the answer."""
    event: ServerSentEvent | None = yield NextEvent()
    return event


def work(do: Callable[[], T]) -> Flow[T]:
    """`yield`, with the type of the answer."""
    result: T = yield Work(do)
    return result


def is_stream(response: httpx.Response) -> bool:
    """Whether events come over it."""
    declared = str(response.headers.get("content-type", ""))
    return response.status_code == httpx.codes.OK and declared.startswith("text/event-stream")
