"""A replica without Ray: a real store with real versions, the follower, the HTTP interface."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.types import ASGIApp, Scope

from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import LivePointer
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from cmcl.storage.versions import write_live
from tests.fakes.executor import EndingThreads, InlineThreads
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.letter_encoder import LetterEncoders
from tests.fakes.memory_folder import tmp_path
from tests.fakes.serve_metrics import RecordedMetrics
from tests.fakes.versions import publish_version, random_heads, store_version
from tests.unit.serve.described import check_described
from workers.serve.api.app import create_api
from workers.serve.api.context import Admission
from workers.serve.api.context import Replica as Parts
from workers.serve.auth import AllowAll
from workers.serve.background import BackgroundExecutor
from workers.serve.batcher import Batcher
from workers.serve.collections.collections import Collections
from workers.serve.collections.follower import CollectionsFollower
from workers.serve.collections.registry import Registry
from workers.serve.drift import QueryWatch
from workers.serve.encoders.client import EncoderClient
from workers.serve.settings import ServeSettings
from workers.serve.threads import Threads

if TYPE_CHECKING:
    from workers.serve.otel import OpenTelemetryTracing
from workers.serve.versions.cache import VersionCache
from workers.serve.versions.follower import Follower, PollTask, Swapper
from workers.serve.versions.live import LiveVersions, VersionLookup
from workers.serve.versions.loading import StoredVersions

__all__ = ["tmp_path"]

MODEL = "scenes"
POLL_SECONDS = 0.01
SPEC = ModelSpec.model_validate(
    {"width": 6, "modalities": {"image": 5, "text": {"width": 4, "encoder": "letters"}}}
)


@dataclass
class Clock:
    """A clock that tests advance."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


# Bytes for values that no text can be.
Headers = Mapping[str, str] | Mapping[bytes, bytes]


@dataclass
class Replica:
    """A replica without Ray and without a socket; tests call `poll` in place of its thread."""

    store: FlakyStore
    args: ServeSettings
    clock: Clock = field(default_factory=Clock)
    live: LiveVersions = field(default_factory=LiveVersions)
    metrics: RecordedMetrics = field(default_factory=RecordedMetrics)
    encoders: Mapping[str, EncoderClient] = field(default_factory=dict)
    tracing: "OpenTelemetryTracing | None" = None
    queries: QueryWatch | None = None

    def __post_init__(self) -> None:
        self.stored = StoredVersions(self.store)
        self.cache = VersionCache(
            *(self.stored, self.args.recent_versions, self.args.max_heads_bytes),
            self.metrics,
            owner_of=self.owner_of,
        )
        self.threads = InlineThreads(self.clock)
        self.follower = self.follower_of(self.threads, POLL_SECONDS)
        registry, self.collecting = Registry(self.store), EndingThreads()
        self.collections = Collections(
            registry,
            CollectionsFollower(
                *(registry, self.live, self.cache.load, "me", POLL_SECONDS), self.collecting
            ),
            self.args.collection_limits,
        )
        self.app = self.app_of(self.args)

    def owner_of(self, model: str) -> str | None:
        pointer = self.live.pointer(model)
        return None if pointer is None else pointer.owner

    def app_of(self, args: ServeSettings) -> ASGIApp:
        """The HTTP interface of a replica with these arguments."""
        return create_api(self.parts(args))

    def parts(self, args: ServeSettings) -> Parts:
        """The objects that the routes use."""
        return Parts(
            args=args,
            store=self.store,
            live=self.live,
            lookup=VersionLookup(self.live, self.cache, args.min_version_wait_seconds),
            batcher=Batcher(self.metrics),
            background=BackgroundExecutor(),
            searches=BackgroundExecutor(count=2),
            encoders=self.encoders,
            access=AllowAll(),
            admission=Admission(args),
            metrics=self.metrics,
            collections=self.collections,
            tracing=self.tracing,
            queries=self.queries,
        )

    def publish(
        self,
        version: int,
        generation: int | None = None,
        model: str = MODEL,
        encoders: Mapping[str, EncoderIdentity] = {},
        spec: ModelSpec = SPEC,
    ) -> None:
        # Other models have other heads: replicas share equal ones by digest.
        heads = random_heads(spec, seed=version + (0 if model == MODEL else 1000))
        publish_version(
            self.store, model, version, spec, heads, generation or version, encoders=encoders
        )

    def store_heads(self, version: int, model: str = MODEL) -> str:
        """Store what `publish` publishes, without the pointer. Returns the key of the heads."""
        heads = random_heads(SPEC, seed=version + (0 if model == MODEL else 1000))
        manifest = store_version(self.store, model, version, SPEC, heads)
        return layout.blob(manifest.files[layout.HEADS].sha256)

    def point(self, generation: int, version: int, **rest: object) -> None:
        fields = {"generation": generation, "version": version, **rest}
        write_live(self.store, MODEL, LivePointer.model_validate(fields))

    def follower_of(
        self, threads: Threads, poll_seconds: float, tasks: Sequence[PollTask] = ()
    ) -> Follower:
        swapper = Swapper(self.live, self.cache, self.metrics, threads, self.tracing)
        return Follower(self.store, self.live, swapper, poll_seconds, tasks, threads)

    def follow(self, poll_seconds: float = POLL_SECONDS, tasks: Sequence[PollTask] = ()) -> None:
        """Follow continuously, in threads."""
        self.following = EndingThreads()
        self.follower = self.follower_of(self.following, poll_seconds, tasks)
        self.follower.start()

    def poll(self) -> None:
        self.follower.poll()
        self.threads.run_all()

    def live_number(self, model: str = MODEL) -> int | None:
        live = self.live.get(model)
        return live.version.number if live else None

    def run(
        self, use: Callable[[httpx.AsyncClient], Coroutine[Any, Any, httpx.Response]]
    ) -> httpx.Response:
        """Run one request on its own event loop."""

        async def inside() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport,
                base_url="http://127.0.0.1",
                event_hooks={"response": [_check]},
            ) as client:
                return await use(client)

        return asyncio.run(inside())

    def get(self, path: str) -> httpx.Response:
        return self.run(lambda client: client.get(path))

    def embed(self, headers: Headers | None = None, **changes: object) -> httpx.Response:
        """Send a valid request for one image with some fields changed; None removes a field."""
        fields = {"model": MODEL, "modality": "image", "input": [1, 2, 3, 4, 5], **changes}
        present = {name: value for name, value in fields.items() if value is not None}
        return self.send(json.dumps(present).encode(), headers)

    def send(self, body: bytes, headers: Headers | None = None) -> httpx.Response:
        return self.run(lambda client: client.post("/v1/embeddings", content=body, headers=headers))


def asgi_scope(method: str, path: str, query: bytes = b"", length: int = 0) -> Scope:
    """What a server passes to an application; `length`: of the body."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": query,
        "headers": [(b"content-length", str(length).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


async def _check(response: httpx.Response) -> None:
    await response.aread()
    check_described(response)


@pytest.fixture
def store(tmp_path: Path) -> FlakyStore:
    return FlakyStore(LocalStore(tmp_path / "store"))


@pytest.fixture
def with_encoder(store: FlakyStore) -> Replica:
    """A replica with version 1 live and a text encoder."""
    replica = Replica(store, ServeSettings(store=store.uri), encoders=LetterEncoders())
    replica.publish(version=1)
    replica.poll()
    return replica


def replica_of(store: FlakyStore) -> Replica:
    """A replica with low limits."""
    args = ServeSettings(
        store=store.uri,
        max_rows=50,
        max_rows_in_flight=60,
        max_body_bytes=20_000,
        min_version_wait_seconds=0.1,
        recent_versions=2,
    )
    return Replica(store, args)


@pytest.fixture
def replica(store: FlakyStore) -> Replica:
    """A replica of an empty store."""
    return replica_of(store)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    """A replica with version 1 live, for the tests of a module that change nothing in it."""
    made = replica_of(FlakyStore(LocalStore(tmp_path_factory.mktemp("store"))))
    made.publish(version=1)
    made.poll()
    return made


@pytest.fixture
def serving(replica: Replica) -> Replica:
    """A replica with version 1 live."""
    replica.publish(version=1)
    replica.poll()
    return replica
