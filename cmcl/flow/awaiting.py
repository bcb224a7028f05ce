"""Carries flows out and awaits: asyncio or trio, as httpx does."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, closing, suppress
from typing import Any, TypeVar

import anyio
import httpx
from httpx_sse import EventSource, ServerSentEvent

from cmcl.flow.blocking import LONGEST_SILENCE
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
from cmcl.flow.streams import BoundedAsyncBytes, bounded, patience

T = TypeVar("T")

_CHUNK_BYTES = 2**20


class Awaiting:
    """What runs the flows of `AsyncClient`."""

    def __init__(self, clients: Mapping[Side, httpx.AsyncClient]) -> None:
        self._clients = clients

    async def run(self, flow: Flow[T]) -> T:
        """To its end."""
        async with aclosing(_Line(self._clients)) as line:
            with closing(Carried(flow)) as carried:
                while (effect := carried.next()) is not None:
                    await _carry(line, effect, carried)
                return carried.result

    async def iterate(self, items: Items[T]) -> AsyncIterator[T]:
        """Item by item, as they are asked for."""
        async with aclosing(_Line(self._clients)) as line:
            with closing(Carried(items)) as carried:
                while (effect := carried.next()) is not None:
                    if isinstance(effect, Item):
                        yield effect.value
                    else:
                        await _carry(line, effect, carried)

    async def aclose(self) -> None:
        """Give the connections back."""
        for client in self._clients.values():
            await client.aclose()


async def _carry(line: "_Line", effect: Effect | Item[Any], carried: Carried[Any]) -> None:
    try:
        carried.reply = await line.perform(effect)
    except OUTCOMES as error:
        carried.error = error


async def _chunks(file: "anyio.AsyncFile[bytes]") -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK_BYTES):
        yield chunk


class _Line:
    """The connections of one flow, and the one stream that it may listen to."""

    def __init__(self, clients: Mapping[Side, httpx.AsyncClient]) -> None:
        self._clients = clients
        self._open = AsyncExitStack()
        self._events: AsyncIterator[ServerSentEvent] | None = None

    async def perform(self, effect: Effect | Item[Any]) -> object:
        match effect:
            case Exchange():
                return await self._clients[effect.side].request(**options(effect))  # type: ignore[arg-type]
            case SendFile():
                return await self._send(effect)
            case Listen():
                return await self._listen(effect)
            case NextEvent():
                return await anext(self._events, None) if self._events else None
            case Pause():
                await anyio.sleep(effect.seconds)
            case Work():
                return await anyio.to_thread.run_sync(effect.do)
            case Item():
                raise AssertionError("only what is iterated has items")
        return None

    async def _send(self, effect: SendFile) -> httpx.Response:
        client = self._clients[effect.exchange.side]
        async with await anyio.open_file(effect.path, "rb") as file:
            content = _chunks(file)
            return await client.request(**{**options(effect.exchange), "content": content})  # type: ignore[arg-type]

    async def _listen(self, listen: Listen) -> httpx.Response:
        await self.aclose()
        client = self._clients[listen.exchange.side]
        silence = patience(listen.until, time.monotonic, LONGEST_SILENCE)
        timeout = httpx.Timeout(client.timeout.connect, read=silence)
        stream = client.stream(**options(listen.exchange), timeout=timeout)  # type: ignore[arg-type]
        response = await self._open.enter_async_context(stream)
        if is_stream(response):
            source = bounded(response, BoundedAsyncBytes(response, listen.until, time.monotonic))
            self._events = EventSource(source).aiter_sse()
        else:
            await response.aread()
            await self.aclose()
        return response

    async def aclose(self) -> None:
        events, self._events = self._events, None
        if isinstance(events, AsyncGenerator):
            await events.aclose()
        with suppress(httpx.TransportError):
            await self._open.aclose()
