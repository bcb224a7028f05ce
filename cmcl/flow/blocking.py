"""Carries flows out and blocks."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from typing import Any, TypeVar

import httpx
from httpx_sse import EventSource, ServerSentEvent

from cmcl.flow.carry import OUTCOMES, Carried
from cmcl.flow.connection import options
from cmcl.flow.effects import (
    Effect,
    Exchange,
    Flow,
    Item,
    Items,
    Listen,
    NextEvent,
    Pause,
    SendFile,
    Side,
    Work,
    is_stream,
)
from cmcl.flow.streams import BoundedBytes, bounded, patience

T = TypeVar("T")

# Longer than the pause between two heartbeats.
LONGEST_SILENCE = 45.0


class Blocking:
    """What runs the flows of `Client`."""

    def __init__(self, clients: Mapping[Side, httpx.Client]) -> None:
        self._clients = clients

    def run(self, flow: Flow[T]) -> T:
        """To its end."""
        with closing(Carried(flow)) as carried, closing(_Line(self._clients)) as line:
            while (effect := carried.next()) is not None:
                _carry(line, effect, carried)
            return carried.result

    def iterate(self, items: Items[T]) -> Iterator[T]:
        """Item by item, as they are asked for."""
        with closing(Carried(items)) as carried, closing(_Line(self._clients)) as line:
            while (effect := carried.next()) is not None:
                if isinstance(effect, Item):
                    yield effect.value
                else:
                    _carry(line, effect, carried)

    def close(self) -> None:
        """Give the connections back."""
        for client in self._clients.values():
            client.close()


def _carry(line: "_Line", effect: Effect | Item[Any], carried: Carried[Any]) -> None:
    try:
        carried.reply = line.perform(effect)
    except OUTCOMES as error:
        carried.error = error


class _Line:
    """The connections of one flow, and the one stream that it may listen to."""

    def __init__(self, clients: Mapping[Side, httpx.Client]) -> None:
        self._clients = clients
        self._open = ExitStack()
        self._events: Iterator[ServerSentEvent] = iter(())

    def perform(self, effect: Effect | Item[Any]) -> object:
        match effect:
            case Exchange():
                return self._clients[effect.side].request(**options(effect))  # type: ignore[arg-type]
            case SendFile():
                return self._send(effect)
            case Listen():
                return self._listen(effect)
            case NextEvent():
                return next(self._events, None)
            case Pause():
                time.sleep(effect.seconds)
            case Work():
                return effect.do()
            case Item():
                raise AssertionError("only what is iterated has items")
        return None

    def _send(self, effect: SendFile) -> httpx.Response:
        client = self._clients[effect.exchange.side]
        with effect.path.open("rb") as file:
            return client.request(**{**options(effect.exchange), "content": file})  # type: ignore[arg-type]

    def _listen(self, listen: Listen) -> httpx.Response:
        self.close()
        client = self._clients[listen.exchange.side]
        silence = patience(listen.until, time.monotonic, LONGEST_SILENCE)
        timeout = httpx.Timeout(client.timeout.connect, read=silence)
        stream = client.stream(**options(listen.exchange), timeout=timeout)  # type: ignore[arg-type]
        response = self._open.enter_context(stream)
        if is_stream(response):
            source = bounded(response, BoundedBytes(response, listen.until, time.monotonic))
            self._events = EventSource(source).iter_sse()
        else:
            response.read()
            self.close()
        return response

    def close(self) -> None:
        with suppress(httpx.TransportError):
            self._open.close()
        self._events = iter(())
