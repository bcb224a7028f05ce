"""The client class: all calls over one session."""

from types import TracebackType
from typing import Self

import httpx

from cmcl.client._async.access import AccessCalls
from cmcl.client._async.datasets import DatasetCalls
from cmcl.client._async.endpoint import EndpointCalls
from cmcl.client._async.jobs import JobCalls
from cmcl.client._async.models import ModelCalls
from cmcl.client._async.session import AsyncSession
from cmcl.client._async.uploads import UploadCalls
from cmcl.client.concurrency import Clock
from cmcl.client.connection import DEFAULT_EMBEDDINGS_URL, DEFAULT_SERVICE_URL, Connection, Retries


class AsyncClient(ModelCalls, DatasetCalls, UploadCalls, JobCalls, EndpointCalls, AccessCalls):
    """Client of both servers. `Client` is synchronous; `AsyncClient` works with asyncio and trio.

    Both have the same calls with the same arguments. Lists are iterators, or asynchronous iterators.
    Use the client as a context manager, or close it. Every call raises CmclError.

    service_url: address of the control plane. embeddings_url: address of the embeddings endpoint.
    timeout: seconds for connecting, and for each read and write. key: API key; by default the
    environment variable CMCL_KEY. retries: retry policy. transport: httpx transport, for proxies and
    tests. clock: for tests.
    """

    def __init__(  # noqa: PLR0913 - the options of a connection
        self,
        service_url: str = DEFAULT_SERVICE_URL,
        embeddings_url: str = DEFAULT_EMBEDDINGS_URL,
        timeout: float = 30.0,
        *,
        key: str | None = None,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._connection = Connection.of(service_url, embeddings_url, key, timeout)
        super().__init__(AsyncSession(self._connection, retries or Retries(), transport, clock))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.service_host})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.aclose()
