"""Requests to an app in this process, without a socket and without another thread."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

# FastAPI, or a layer around it.
App = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]


class AppClient:
    """Synchronous, like the tests that use it."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._transport = httpx.ASGITransport(app)

    def get(self, path: str, **options: object) -> httpx.Response:
        """GET."""
        return self.request("GET", path, **options)

    def post(self, path: str, **options: object) -> httpx.Response:
        """POST."""
        return self.request("POST", path, **options)

    def put(self, path: str, **options: object) -> httpx.Response:
        """PUT."""
        return self.request("PUT", path, **options)

    def request(self, method: str, path: str, **options: object) -> httpx.Response:
        """Any method."""
        return asyncio.run(self._request(method, path, **options))

    async def _request(self, method: str, path: str, **options: object) -> httpx.Response:
        client = httpx.AsyncClient(transport=self._transport, base_url="http://localhost")
        async with client:
            return await client.request(method, path, **options)  # type: ignore[arg-type]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the app's lifespan around the block, as uvicorn does."""
        with asyncio.Runner() as runner:
            assert isinstance(self._app, FastAPI)
            lifespan = self._app.router.lifespan_context(self._app)
            runner.run(lifespan.__aenter__())
            try:
                yield
            finally:
                runner.run(lifespan.__aexit__(None, None, None))
