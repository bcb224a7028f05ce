"""The Serve application: what one replica runs, its arguments, and how it is deployed.

A RayService imports `build`, `__main__` calls `deploy`.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import httpx
import torch
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig
from ray.util.metrics import Counter, Gauge, Histogram
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
from workers.serve.drift import watch_queries
from workers.serve.encoders.deployment import (
    REPLICA,
    Handle,
    at_most_per_node,
    encoder_applications,
    encoders_behind,
)
from workers.serve.settings import APPLICATION, ServeArgs, ServeSettings
from workers.serve.telemetry import SERIES, ServeMetrics
from workers.serve.versions.cache import VersionCache
from workers.serve.versions.follower import Follower, PollTask, Swapper
from workers.serve.versions.live import LiveVersions, VersionLookup, wait_until_ready
from workers.serve.versions.loading import StoredVersions

# Longer than any product takes, and shorter than Serve waits for an answer (30 s).
_STUCK_SECONDS = 20.0
_SWITCH_SECONDS = 0.001
_RELEASE_SECONDS = 20.0
_EXPORT_SECONDS = 1.0
_ANSWER_SECONDS = 10.0
# Serve itself waits 60 s for its proxy, and its controller continues after that.
_STARTS, _PROXY_SECONDS = 5, 60.0
# Room for requests that are refused, and for probes, which are not counted.
_TIMES_OURS = 2


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
        # Requests allocate and free the same megabytes again and again; what no request needs is
        # returned every few seconds.
        keep_freed_memory()
        release_memory_every(_RELEASE_SECONDS)
        self._args = args
        self._encoders = encoders_behind(args.encoders, encoders)
        self._store = open_store(args.store)
        self._metrics = ServeMetrics()
        self._tracing = open_tracing(os.environ, replica=uuid4().hex)
        self._live = LiveVersions()
        self._batcher = Batcher(self._metrics)
        self._background = BackgroundExecutor()
        self._searches = BackgroundExecutor(count=2)
        self._admission = Admission(args)
        self._metrics.watch("rows_waiting", lambda: self._batcher.waiting_rows)
        self._cache = VersionCache(
            StoredVersions(self._store),
            args.recent_versions,
            args.max_heads_bytes,
            self._metrics,
            owner_of=self._owner_of,
        )
        self._metrics.watch("heads_bytes", lambda: self._cache.bytes)
        swapper = Swapper(self._live, self._cache, self._metrics, tracing=self._tracing)
        self._access, tasks = _authenticator(args, self._metrics)
        self._queries = watch_queries(args, uuid4().hex)
        if self._queries is not None:
            tasks = (*tasks, self._queries.poll)
        self._follower = Follower(
            self._store, self._live, swapper, args.poll_interval_seconds, tasks
        )
        self._follower.start()
        self._metrics.watch("ready", lambda: self._live.readiness.ready)
        # From the start, so that an endpoint without a model has the series.
        self._metrics.connected(False)
        self._exporter = export_metrics(self._metrics)
        wait_until_ready(
            self._live.readiness,
            args.first_poll_seconds,
            lambda: bool(_replica_states().get("RUNNING")),
        )
        self._collections = self._start_collections()
        self._listener = AnnouncementListener(self._wake, self._metrics.connected)
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
            searches=self._searches,
            encoders=self._encoders,
            access=self._access,
            admission=self._admission,
            metrics=self._metrics,
            announce=self._listener.announce,
            collections=self._collections,
            tracing=self._tracing,
            replica_states=_replica_states,
            queries=self._queries,
        )
        return create_api(replica)

    async def check_health(self) -> None:
        """Called by Serve. A store that is down is no reason to restart: loaded versions keep answering."""
        if problem := await stuck(
            self._batcher, (self._background, self._searches), _STUCK_SECONDS
        ):
            raise RuntimeError(problem)
        threads = {
            "the follower of the live pointers": self._follower.alive,
            "the follower of the collections": self._collections.follower.alive,
            "the listener for announcements": self._listener.alive,
            "the export of metrics": self._exporter.is_alive(),
        }
        if ended := [name for name, is_alive in threads.items() if not is_alive]:
            raise RuntimeError(f"{' and '.join(ended)} ended in this replica")

    def _start_collections(self) -> Collections:
        """Follow the collections, and wait for them if the store is available."""
        args, registry = self._args, Registry(self._store)
        follower = CollectionsFollower(
            registry, self._live, self._cache.load, uuid4().hex, args.poll_interval_seconds
        )
        self._metrics.watch("collections_behind", follower.behind)
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


def _authenticator(args: ServeSettings, metrics: ServeMetrics) -> tuple[Access, Sequence[PollTask]]:
    """Return what authenticates requests, and what it reads in the store."""
    if args.access_public_key is None:
        return AllowAll(), ()
    keys = SignedKeys(read_public_keys(args.access_public_key), metrics.key_list_refused)
    return keys, (keys.refresh,)


def export_metrics(metrics: ServeMetrics) -> threading.Thread:
    """Start and return a thread that passes metrics to Ray, whose nodes export them to Prometheus.

    What prometheus_client counts inside a Ray worker is not exported. Ray drops a gauge that was not set for two of
    its report intervals (20 s), so each is set every second, changed or not.
    """
    record: dict[str, Callable[[float, dict[str, str]], None]] = {}
    for kind, short, description, labels, bounds in SERIES:
        name = f"cmcl_serve_{short}"
        if kind == "counter":
            record[short] = Counter(name, description, tag_keys=labels).inc
        elif kind == "gauge":
            record[short] = Gauge(name, description, tag_keys=labels).set
        else:
            made = Histogram(name, description, boundaries=list(bounds), tag_keys=labels)
            record[short] = made.observe

    def export() -> None:
        while True:
            time.sleep(_EXPORT_SECONDS)
            for short, labels, value in metrics.drain():
                record[short](value, labels)

    thread = threading.Thread(target=export, name="metrics", daemon=True)
    thread.start()
    return thread


EMBEDDER: serve.Deployment = serve.deployment(
    # The response beyond what may wait in Ray (`build`), as a replica would refuse.
    backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
    # When the application changes, the new replica is up before the old one ends.
    max_surge_percent=100,
    health_check_period_s=5,
    # A log line for each request costs a thirtieth of it, written or not; requests are counted instead.
    logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
)(serve.ingress()(Embedder))


def build(args: ServeSettings | dict[str, object]) -> serve.Application:
    """Build the application for these settings, or arguments. Raises pydantic.ValidationError."""
    if not isinstance(args, ServeSettings):
        args = ServeSettings.model_validate(ServeArgs.model_validate(args).model_dump())
    deployment = EMBEDDER.options(
        num_replicas=args.replicas,
        ray_actor_options=_booked(args),
        # Requests that wait in Ray have neither a share by key nor a deadline. So Ray admits more than a
        # replica does, and the replica decides; of a burst beyond that some wait for a moment, and the
        # rest is refused.
        max_ongoing_requests=_TIMES_OURS * args.max_requests_in_flight,
        max_queued_requests=_TIMES_OURS * args.max_requests_in_flight,
        # A replica that is replaced ends when all its requests are answered. By default Ray would end
        # them after 20 s.
        graceful_shutdown_timeout_s=args.body_seconds + args.queue_seconds,
    )
    own_nodes = args.replicas_per_node is not None
    return deployment.bind(
        args, encoder_applications(args.encoders, args.store, own_nodes=own_nodes)
    )


def _booked(args: ServeArgs) -> dict[str, Any]:
    if args.replicas_per_node is None:
        return {"num_cpus": args.num_cpus}
    return at_most_per_node(REPLICA, args.replicas_per_node, args.identity)


def deploy(args: ServeSettings, host: str, port: int) -> str:
    """Deploy the application at `host:port` and return its address. Prints its phases.

    If it runs already with the same arguments and release it is left alone: deploying would restart its
    replicas. Raises RuntimeError if a part does not start, or if Serve was started
    before with another address: its HTTP options cannot be changed while it runs. Raises TimeoutError or
    RayActorError if Serve's proxy is not ready in several minutes.
    """
    for number in range(2, _STARTS + 1):
        began = time.monotonic()
        try:
            return _deploy(args, host, port)
        except (TimeoutError, RayActorError):  # The proxy was not ready in time, or was replaced.
            print(
                f"starting: Ray Serve's proxy was not ready after {time.monotonic() - began:.0f} s. "
                f"Trying again ({number} of {_STARTS})",
                flush=True,
            )
    return _deploy(args, host, port)


def _deploy(args: ServeSettings, host: str, port: int) -> str:
    began = time.monotonic()
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
    _wait_for_proxy()
    print(f"starting: Ray Serve is ready after {time.monotonic() - began:.0f} s", flush=True)
    # Compared, not bound: a server on all interfaces answers on loopback.
    address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104
    if not _is_running() or _identity_at(address) != args.identity:
        encoders = "".join(f", encoder {each.name}" for each in args.encoders)
        print(f"starting: replicas of the endpoint{encoders}", flush=True)
        _run(build(args))
    if _identity_at(address) != args.identity:
        raise RuntimeError(f"the application runs, but another one answers at {address}")
    return address


def _wait_for_proxy() -> None:
    """Until it answers. `serve.start` does not wait where Serve has been started before. Raises TimeoutError."""
    deadline = time.monotonic() + _PROXY_SECONDS
    while not ((proxies := serve.status().proxies) and set(proxies.values()) == {"HEALTHY"}):
        if time.monotonic() > deadline:
            raise TimeoutError(f"proxies: {proxies}")
        time.sleep(0.2)


def _run(application: serve.Application) -> None:
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n{_failures()}") from error


def _failures() -> str:
    """Return why deployments did not start; Serve's own error only names them."""
    parts = serve.status().applications[APPLICATION].deployments
    return "\n".join(f"{name}: {part.message}" for name, part in parts.items() if part.message)


def _is_running() -> bool:
    application = serve.status().applications.get(APPLICATION)
    return application is not None and application.status == "RUNNING"


def _identity_at(address: str) -> object:
    """Asked over HTTP: a driver's Serve handles fail under RAY_SERVE_THROUGHPUT_OPTIMIZED=1."""
    try:
        # No proxy from the environment: the address is on this machine.
        with httpx.Client(timeout=_ANSWER_SECONDS, trust_env=False) as client:
            body: dict[str, object] = client.get(f"{address}/healthz").raise_for_status().json()
        return body.get("application")
    except (httpx.HTTPError, ValueError) as error:
        raise RuntimeError(
            f"the application runs, but {address} does not answer as expected ({error}). If Serve "
            "was started on this cluster before with another address, use that one, or run "
            "`serve shutdown`"
        ) from error
