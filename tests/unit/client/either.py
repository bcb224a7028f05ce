"""Both clients behind one interface, so that each test runs on both."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import httpx
from fastapi import FastAPI

from cmcl import AsyncClient, Client
from cmcl.client import Retries

# Nothing in a test waits.
PROMPT = Retries(attempts=3, first_pause=0.001)
KINDS = ("blocking", "awaited")


class BlockingAsgi(httpx.BaseTransport):
    """Transport to an app in this process, for the synchronous client."""

    def __init__(self, app: FastAPI) -> None:
        self._transport = httpx.ASGITransport(app)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        # A body that is read in blocking pieces is no asynchronous one.
        request.read()
        return asyncio.run(self._ask(request))

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        response = await self._transport.handle_async_request(request)
        content = await response.aread()
        return httpx.Response(response.status_code, headers=response.headers, content=content)


class Awaited:
    """Wraps an AsyncClient in blocking methods that return complete lists."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        async def call(*arguments: object, **named: object) -> object:
            result = method(*arguments, **named)
            if isinstance(result, AsyncIterator):
                return [item async for item in result]
            return await result

        return lambda *arguments, **named: self._runner.run(call(*arguments, **named))


@contextmanager
def connected(kind: str, url: str, **options: Any) -> Iterator[Client]:
    """Return a client of that kind for a real socket."""
    options = {"retries": PROMPT, "timeout": 60.0, **options}
    if kind == "blocking":
        with Client(url, url, **options) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        awaited = AsyncClient(url, url, **options)
        yield cast("Client", Awaited(awaited, runner))
        runner.run(awaited.aclose())


@contextmanager
def in_process(
    kind: str, app: FastAPI, host: str = "127.0.0.1", **options: Any
) -> Iterator[Client]:
    """Return a client of that kind for an app in this process, under the given host."""
    transport = BlockingAsgi(app) if kind == "blocking" else httpx.ASGITransport(app)
    with connected(kind, f"http://{host}", transport=transport, **options) as client:
        yield client
