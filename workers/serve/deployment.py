"""The Serve deployment: one replica, what follows the store in it, and its HTTP interface."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from uuid import uuid4

import torch
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from cmcl.memory import keep_freed_memory, release_memory_every
from cmcl.storage.uris import open_store
from workers.serve.announcements import AnnouncementListener
from workers.serve.api.app import create_api
from workers.serve.api.context import Admission, Replica, open_tracing
from workers.serve.api.middleware import install_protocol
from workers.serve.auth import Access, AllowAll, SignedKeys, read_public_keys
from workers.serve.background import BackgroundExecutor
from workers.serve.batcher import Batcher, stuck
from workers.serve.collections.collections import Collections
from workers.serve.collections.follower import CollectionsFollower
from workers.serve.collections.registry import Registry
from workers.serve.encoders.deployment import Handle, encoders_behind
from workers.serve.ray_adapters import RayMetrics, open_channel
from workers.serve.settings import ServeSettings
from workers.serve.versions.cache import VersionCache
from workers.serve.versions.follower import Follower, PollTask, Swapper
from workers.serve.versions.live import LiveVersions, VersionLookup, wait_until_ready
from workers.serve.versions.loading import StoredVersions

# Longer than any product takes, and shorter than Serve waits for an answer (30 s).
_STUCK_SECONDS = 20.0
_SWITCH_SECONDS = 0.001
_RELEASE_SECONDS = 20.0


class Embedder:
    """Answers embedding requests. A new version of a model never restarts it."""

    def __init__(self, args: ServeSettings, encoders: Mapping[str, Handle]) -> None:
        """Follow the store, which may be unavailable (`wait_until_ready`).

        That raises nothing: Serve stops retrying an application after some failed starts.
        """
        logging.basicConfig(level=logging.INFO)
        torch.set_num_threads(1)
        # By default a thread that computes in Python holds the interpreter for 5 ms each time that the event
        # loop needs it, which is several times in a request.
        sys.setswitchinterval(_SWITCH_SECONDS)
        install_protocol()
        # Requests allocate and free the same megabytes again and again; what no request needs any more is
        # returned every few seconds.
        keep_freed_memory()
        release_memory_every(_RELEASE_SECONDS)
        self._args = args
        self._encoders = encoders_behind(args.encoders, encoders)
        self._store = open_store(args.store)
        self._metrics = RayMetrics()
        self._tracing = open_tracing(os.environ, replica=uuid4().hex)
        self._live = LiveVersions()
        self._batcher = Batcher(self._metrics, traced=self._tracing is not None)
        self._background = BackgroundExecutor()
        self._admission = Admission(args)
        self._metrics.watch(
            "rows_waiting", "Rows that wait for a product.", lambda: self._batcher.waiting_rows
        )
        self._cache = VersionCache(
            StoredVersions(self._store),
            args.recent_versions,
            args.max_heads_bytes,
            self._metrics,
            owner_of=self._owner_of,
        )
        self._metrics.watch("heads_bytes", "Bytes of heads in memory.", lambda: self._cache.bytes)
        swapper = Swapper(self._live, self._cache, self._metrics, tracing=self._tracing)
        self._access, tasks = _authenticator(args, self._metrics)
        self._follower = Follower(
            self._store, self._live, swapper, args.poll_interval_seconds, tasks
        )
        self._follower.start()
        self._metrics.watch(
            "ready",
            "1 once the object storage was read.",
            lambda: float(self._live.readiness.ready),
        )
        wait_until_ready(
            self._live.readiness,
            args.first_poll_seconds,
            lambda: bool(_replica_states().get("RUNNING")),
        )
        self._collections = self._start_collections()
        self._listener = AnnouncementListener(open_channel, self._wake, self._metrics.connected)
        self._listener.start()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve once per replica."""
        args = self._args
        replica = Replica(
            args=args,
            store=self._store,
            live=self._live,
            lookup=VersionLookup(self._live, self._cache, args.min_version_wait_seconds),
            batcher=self._batcher,
            background=self._background,
            encoders=self._encoders,
            access=self._access,
            admission=self._admission,
            metrics=self._metrics,
            announce=self._listener.announce,
            collections=self._collections,
            tracing=self._tracing,
            replica_states=_replica_states,
        )
        return create_api(replica)

    async def check_health(self) -> None:
        """Called by Serve. A store that is down is no reason to restart: loaded versions keep answering."""
        if problem := await stuck(self._batcher, self._background, _STUCK_SECONDS):
            raise RuntimeError(problem)
        if not self._follower.alive:
            raise RuntimeError("the follower of the live pointers has stopped in this replica")
        if not self._collections.follower.alive:
            raise RuntimeError("the follower of the collections has stopped in this replica")

    def _start_collections(self) -> Collections:
        """Follow the collections, and wait for them if the store is available."""
        args, registry = self._args, Registry(self._store)
        follower = CollectionsFollower(
            registry, self._live, self._cache.load, uuid4().hex, args.poll_interval_seconds
        )
        self._metrics.watch(
            "collections_behind",
            "Collections not searched by their live version.",
            follower.behind,
        )
        follower.start()
        if self._live.readiness.ready:
            # Those that take longer are loaded while this replica answers everything else.
            follower.wait_loaded(args.first_poll_seconds)
        return Collections(registry, follower, args.collection_limits)

    def _wake(self) -> None:
        self._follower.wake()
        self._collections.follower.wake()

    def _owner_of(self, model: str) -> str | None:
        pointer = self._live.pointer(model)
        return None if pointer is None else pointer.owner


def _replica_states() -> Mapping[str, int]:
    """Number of replicas of this application by state; empty where Serve's controller has failed."""
    me = serve.get_replica_context()
    try:
        states = serve.status().applications[me.app_name].deployments[me.deployment].replica_states
    except (RayError, KeyError):
        return {}
    # Declared as an enumeration; Serve returns strings.
    return {str(state): count for state, count in states.items()}


def _authenticator(args: ServeSettings, metrics: RayMetrics) -> tuple[Access, Sequence[PollTask]]:
    """Return what authenticates requests, and what it reads in the store."""
    if args.access_public_key is None:
        return AllowAll(), ()
    keys = SignedKeys(read_public_keys(args.access_public_key), metrics.key_list_refused)
    return keys, (keys.refresh,)


EMBEDDER: serve.Deployment = serve.deployment(
    # The response beyond what may wait in Ray (`build`), as a replica would refuse.
    backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
    # When the application changes, the new replica is up before the old one ends.
    max_surge_percent=100,
    health_check_period_s=5,
    # A log line for each request costs a thirtieth of it, written or not; requests are counted instead.
    logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
)(serve.ingress()(Embedder))
