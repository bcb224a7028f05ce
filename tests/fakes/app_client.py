"""Requests to an app in this process: no socket, no thread of its own."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from fastapi import FastAPI


class AppClient:
    """Synchronous, like the tests that use it."""

    def __init__(self, app: FastAPI) -> None:
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
        """From the start of the server to its end, as uvicorn would do it."""
        with asyncio.Runner() as runner:
            lifespan = self._app.router.lifespan_context(self._app)
            runner.run(lifespan.__aenter__())
            try:
                yield
            finally:
                runner.run(lifespan.__aexit__(None, None, None))
