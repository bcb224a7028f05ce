"""A typed client for both HTTP sides: the control plane and the embeddings endpoint.

`Client` blocks, `AsyncClient` is awaited. Everything that can be asked is one line in `Calls`, for
both alike; what each does stands with its description, in `cmcl.calls`.
"""

from types import TracebackType
from typing import TYPE_CHECKING, Self, assert_type

import httpx

from cmcl.calls import access as _access
from cmcl.calls import collections as _collections
from cmcl.calls import datasets as _datasets
from cmcl.calls import embeddings as _embeddings
from cmcl.calls import jobs as _jobs
from cmcl.calls import models as _models
from cmcl.calls import preflights as _preflights
from cmcl.calls import uploads as _uploads
from cmcl.calls import versions as _versions
from cmcl.calls import webhooks as _webhooks
from cmcl.errors import (
    CmclError,
    FieldError,
    InvalidArgument,
    Json,
    TookTooLong,
    Unreachable,
    WrongServer,
)
from cmcl.flow.api import Api
from cmcl.flow.awaiting import Awaiting
from cmcl.flow.binding import AwaitingSide, BlockingSide, call, listing
from cmcl.flow.blocking import Blocking
from cmcl.flow.connection import DEFAULT_EMBEDDINGS_URL, DEFAULT_SERVICE_URL, Connection
from cmcl.flow.retries import Retries
from cmcl.types import FINAL_STATES

__all__ = [
    "DEFAULT_EMBEDDINGS_URL",
    "DEFAULT_SERVICE_URL",
    "FINAL_STATES",
    "AsyncClient",
    "Client",
    "CmclError",
    "FieldError",
    "InvalidArgument",
    "Json",
    "Retries",
    "TookTooLong",
    "Unreachable",
    "WrongServer",
]


class ModelCalls:
    """Models, and which version answers."""

    create_model = call(_models.create_model)
    models = listing(_models.models)
    model = call(_models.model)
    branch_model = call(_models.branch_model)
    delete_model = call(_models.delete_model)
    policy = call(_models.policy)
    set_policy = call(_models.set_policy)


class VersionCalls:
    """Versions."""

    versions = listing(_versions.versions)
    version = call(_versions.version)
    retire_version = call(_versions.retire_version)
    live = call(_models.live)
    promote = call(_models.promote)
    roll_back = call(_models.roll_back)
    promotions = listing(_models.promotions)
    candidate = call(_versions.candidate)
    set_candidate = call(_versions.set_candidate)
    end_candidate = call(_versions.end_candidate)


class EmbeddingCalls:
    """What the embeddings endpoint answers."""

    embed = call(_embeddings.embed)
    similarity = call(_embeddings.similarity)
    migrate = call(_embeddings.migrate)
    served_models = call(_embeddings.served_models)
    served_model = call(_embeddings.served_model)


class CollectionCalls:
    """Search that follows the model."""

    create_collection = call(_collections.create_collection)
    collections = listing(_collections.collections)
    collection = call(_collections.collection)
    delete_collection = call(_collections.delete_collection)
    add_items = call(_collections.add_items)
    remove_items = call(_collections.remove_items)
    search = call(_collections.search)
    export_collection = call(_collections.export_collection)


class DatasetCalls:
    """Datasets, and what they would meet."""

    add_dataset = call(_datasets.add_dataset)
    open_dataset = call(_datasets.open_dataset)
    append_shards = call(_datasets.append_shards)
    seal_dataset = call(_datasets.seal_dataset)
    datasets = listing(_datasets.datasets)
    dataset = call(_datasets.dataset)
    delete_dataset = call(_datasets.delete_dataset)
    ask_preflight = call(_preflights.ask_preflight)
    preflight = call(_preflights.preflight)
    preflights = listing(_preflights.preflights)
    await_preflight = call(_preflights.await_preflight)


class UploadCalls:
    """Files."""

    upload = call(_uploads.upload)
    upload_direct = call(_uploads.upload_direct)
    upload_state = call(_uploads.upload_state)
    abort_upload = call(_uploads.abort_upload)


class JobCalls:
    """Jobs and what happens to them."""

    jobs = listing(_jobs.jobs)
    job = call(_jobs.job)
    cancel = call(_jobs.cancel)
    retry = call(_jobs.retry)
    approve = call(_jobs.approve)
    reject = call(_jobs.reject)
    watch = call(_jobs.watch)
    events = listing(_jobs.events)
    all_events = listing(_jobs.all_events)
    follow_events = listing(_jobs.follow_events)


class AccessCalls:
    """Keys and webhooks."""

    whoami = call(_access.whoami)
    create_key = call(_access.create_key)
    keys = listing(_access.keys)
    key = call(_access.key)
    revoke_key = call(_access.revoke_key)
    create_webhook = call(_webhooks.create_webhook)
    webhooks = listing(_webhooks.webhooks)
    webhook = call(_webhooks.webhook)
    delete_webhook = call(_webhooks.delete_webhook)
    test_webhook = call(_webhooks.test_webhook)
    deliveries = listing(_webhooks.deliveries)


class Calls(
    ModelCalls,
    VersionCalls,
    EmbeddingCalls,
    CollectionCalls,
    DatasetCalls,
    UploadCalls,
    JobCalls,
    AccessCalls,
):
    """All of them."""


class Client(Calls, BlockingSide):
    """Blocks. Use it as a context manager, or call `close`.

    service_url: the control plane. embeddings_url: the endpoint that answers queries. key: of the
    environment variable CMCL_KEY unless it is given. timeout: seconds of connecting, and of each
    read and write. retries: how often a request is sent. transport: httpx's, for proxies and tests.
    Every method raises CmclError with the server's own words.
    """

    def __init__(
        self,
        service_url: str = DEFAULT_SERVICE_URL,
        embeddings_url: str = DEFAULT_EMBEDDINGS_URL,
        timeout: float = 30.0,
        *,
        key: str | None = None,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        connection = Connection.of(service_url, embeddings_url, key, timeout)
        self._connection = connection
        self.api = Api(retries or Retries(), connection.is_near)
        self.loop = Blocking(connection.open(httpx.Client, transport))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.service_host})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self.loop.close()


class AsyncClient(Calls, AwaitingSide):
    """Awaits, with asyncio or trio: the same calls as `Client`, and the same arguments.

    Use it as an asynchronous context manager, or await `aclose`. Lists are asynchronous iterators.
    """

    def __init__(
        self,
        service_url: str = DEFAULT_SERVICE_URL,
        embeddings_url: str = DEFAULT_EMBEDDINGS_URL,
        timeout: float = 30.0,
        *,
        key: str | None = None,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        connection = Connection.of(service_url, embeddings_url, key, timeout)
        self._connection = connection
        self.api = Api(retries or Retries(), connection.is_near)
        self.loop = Awaiting(connection.open(httpx.AsyncClient, transport))

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
        """Give the connections back."""
        await self.loop.aclose()


if TYPE_CHECKING:
    # Checked with everything else: a result has its type, on both clients.
    from collections.abc import AsyncIterator, Iterator

    from cmcl.types import Job

    async def _types(client: Client, awaited: AsyncClient) -> None:
        assert_type(client.job(""), Job)
        assert_type(await awaited.job(""), Job)
        assert_type(client.jobs(), Iterator[Job])
        assert_type(awaited.jobs(), AsyncIterator[Job])
