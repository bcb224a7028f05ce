"""Wires the parts of the control plane. The only module that does."""

import logging
import os
import resource
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from cmcl.contract import DISTRIBUTION
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.uris import open_store
from cmcl.tracing import exporter_from
from service.api import (
    datasets,
    events,
    jobs,
    keys,
    models,
    openapi,
    operations,
    uploads,
    versions,
    webhooks,
)
from service.api.authentication import Authentication, Hosts
from service.api.dependencies import require_body_type
from service.api.limits import Budgets, OwnerLimits
from service.api.openapi import PROBLEMS, DescribedApp, operation_id
from service.api.problems import add_problem_handlers
from service.api.request_log import RequestLog
from service.auth.authenticator import Authenticator
from service.auth.key_snapshot import SnapshotWriter
from service.auth.oidc import OidcTokens
from service.auth.sessions import Sessions
from service.context import Announce, Context, Tuning
from service.core.clock import Clock, steady, utc_now
from service.core.errors import DatabaseError
from service.core.loops import Loop, MemoryReleaser
from service.core.setting_values import read_pod_templates
from service.core.settings import Settings
from service.database.engine import Database, has_notifications, open_database
from service.database.migrations import upgrade
from service.database.queries import instances
from service.events.feed import Feed
from service.events.webhook_delivery import Deliverer, Sender
from service.events.webhook_secrets import SecretCipher, encrypt_stored
from service.jobs.driver import DriverLoop, driver_id
from service.jobs.reconciler import Notifications, Reconciler, Workers
from service.jobs.scheduler import Scheduler
from service.jobs.workqueue import Work
from service.launchers.port import Launcher, WatchedLauncher
from service.launchers.ray_cluster import DriverLauncher, RayJobLauncher
from service.maintenance.backup import BackupWriter
from service.maintenance.gc import GarbageCollector
from service.page.application import PageBesideApi, create_page
from service.registry.live_pointer import Announcer
from service.registry.query_drift import QueryDriftLoop
from service.telemetry.metrics import BacklogCollector, InstrumentedStore, Metrics
from service.telemetry.spans import Spans

logger = logging.getLogger(__name__)

_STOP_SECONDS = 10.0
# A list of a thousand RayJobs takes several megabytes.
_SECONDS_BETWEEN_RAYJOBS = 5.0

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Parts:
    """Parts that tests replace; None stands for the one that the settings describe."""

    store: ObjectStore | None = None
    launcher: Launcher | None = None
    clock: Clock = utc_now
    spans: Spans | None = None
    tuning: Tuning = field(default_factory=Tuning)


def create_app(settings: Settings, parts: Parts | None = None) -> FastAPI:
    """Create the control plane. Its loops run from the start of the server until it stops."""
    announcer = Announcer(settings.embeddings_url)
    context = create_context(settings, parts or Parts(), announcer.announce)
    reconciler = Reconciler(context)
    app = DescribedApp(
        title="cmcl control plane",
        version=version(DISTRIBUTION),
        lifespan=_lifespan(context, reconciler, announcer),
        routes=api_routes(),
        telemetry=context.metrics.spans.of_requests(),
        # Served by `service.api.openapi`: rendered once, without scripts from elsewhere.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = context
    app.state.reconciler = reconciler
    app.state.probes = operations.Probes()
    app.state.rendered_metrics = operations.cached_metrics(context)
    app.state.description = openapi.Description(app.openapi)
    app.state.feed = Feed(context.database, is_stopping=events.is_server_stopping)
    context.metrics.round_age.set_function(reconciler.seconds_since_round)
    context.metrics.queue_oldest.set_function(lambda: reconciler.queue.oldest_seconds(Work.POINTER))
    # The lifespan adds the other loops, which run only with a server.
    _watch(app, [reconciler])
    add_problem_handlers(app)
    # The last one added is the outermost.
    budgets = app.state.budgets = Budgets(
        file_bytes=settings.upload_bytes_max, files_at_once=context.tuning.uploads_at_once
    )
    app.add_middleware(OwnerLimits, budgets=budgets)
    hosts = Hosts(settings.allowed_hosts)
    app.add_middleware(Authentication, authenticator=context.authenticator, hosts=hosts)
    if settings.page == "on":
        page = create_page(app, context, budgets)
        app.add_middleware(PageBesideApi, page=page)
    app.add_middleware(RequestLog, metrics=context.metrics)
    return app


def create_context(settings: Settings, parts: Parts, announce: Announce = lambda: None) -> Context:
    """Create the parts and upgrade the tables. The database is closed on any error."""
    metrics = Metrics(parts.spans or open_spans())
    database = open_database(settings.database_url, metrics.transaction)
    database.subscribe(metrics.observe_event)
    try:
        # Raises if a newer release left tables that this one cannot use.
        upgrade(database)
        return _context(settings, parts, database, metrics, announce)
    except BaseException:
        database.close()
        raise


def _context(
    settings: Settings, parts: Parts, database: Database, metrics: Metrics, announce: Announce
) -> Context:
    metrics.registry.register(BacklogCollector(database, parts.clock))
    tokens = _tokens(settings)
    store = InstrumentedStore(parts.store or open_store(settings.store_uri), metrics)

    def watched(launcher: Launcher) -> Launcher:
        seconds = _seconds_between_lists(settings, parts.tuning)
        return WatchedLauncher(launcher, seconds, steady(parts.clock), metrics.launcher_call)

    def newest_driver() -> str:
        with database.read() as connection:
            return driver_id(store.uri, instances.newest_driver(connection).number)

    driver_launcher = watched(parts.launcher or _launcher(settings, parts.tuning))
    launcher = driver_launcher
    if parts.launcher is None and settings.launcher == "ray":
        launcher = watched(DriverLauncher(store, driver_launcher, newest_driver))
    return Context(
        settings=settings,
        tuning=parts.tuning,
        database=database,
        authenticator=Authenticator(
            settings, database, parts.clock, tokens, parts.tuning.requests_per_minute_per_owner
        ),
        sessions=Sessions(settings, database, parts.clock),
        store=store,
        launcher=launcher,
        driver_launcher=driver_launcher,
        announce=announce,
        metrics=metrics,
        clock=parts.clock,
    )


def _tokens(settings: Settings) -> OidcTokens | None:
    if not settings.oidc_issuer or not settings.oidc_audience:
        return None
    return OidcTokens(settings.oidc_issuer, settings.oidc_audience, settings.oidc_owner_claim)


def _seconds_between_lists(settings: Settings, tuning: Tuning) -> float:
    """How old the launcher's list of attempts may be. The list only shows attempts that died: progress is in the store."""
    return _SECONDS_BETWEEN_RAYJOBS if settings.launcher == "kuberay" else tuning.launcher_seconds


def _launcher(settings: Settings, tuning: Tuning) -> Launcher:
    if settings.launcher == "kuberay":
        return _kuberay_launcher(settings, tuning)
    return RayJobLauncher(settings.ray_address, settings.runtime_env)


def _kuberay_launcher(settings: Settings, tuning: Tuning) -> Launcher:
    # The Kubernetes client takes half a second to import, and most deployments do not need it.
    from service.launchers.kuberay import KubeRayLauncher, Site, own_namespace

    site = Site(
        image=settings.kuberay_image,
        namespace=own_namespace(),
        release=settings.kuberay_release,
        owner=settings.kuberay_owner,
        service_account=settings.kuberay_service_account,
        priority_classes=settings.kuberay_priority_classes,
        pods=read_pod_templates(settings.kuberay_pod_template),
        ranks_per_pod=settings.kuberay_ranks_per_pod,
        gpu_resource=settings.kuberay_gpu_resource,
        submission_mode=settings.kuberay_submission_mode,
        deadline_seconds=tuning.start_deadline_seconds + settings.run_deadline_seconds,
        runtime_env=settings.runtime_env,
    )
    return KubeRayLauncher(site)


def _lifespan(context: Context, reconciler: Reconciler, announcer: Announcer) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        context.authenticator.warn_without_keys()
        encrypt_stored(context.database, SecretCipher(context.settings.encryption_key))
        stop = threading.Event()
        loops = _loops(context, reconciler, announcer)
        _watch(app, loops)
        # Daemons: a call that hangs must not keep the process from exiting. No state is lost.
        threads = [
            threading.Thread(target=loop.work, args=[stop], name=loop.name, daemon=True)
            for loop in loops
        ]
        for thread in threads:
            thread.start()
        yield
        stop.set()
        for thread in threads:
            thread.join(_STOP_SECONDS)
        _release_leases(loops)
        context.metrics.spans.close()
        context.close()

    return lifespan


def _loops(context: Context, reconciler: Reconciler, announcer: Announcer) -> list[Loop]:
    loops: list[Loop] = [
        reconciler,
        reconciler.monitor,
        Workers(reconciler.queue, reconciler.process, context.tuning.reconcile_workers),
        Scheduler(context),
        DriverLoop(context, reconciler.wake_preparations),
        _deliverer(context),
        GarbageCollector(context),
        QueryDriftLoop(context),
        MemoryReleaser(),
        BackupWriter(context),
    ]
    if has_notifications(context.database):
        loops.append(Notifications(context.database, reconciler.wake, reconciler.resync))
    if context.settings.embeddings_url:
        loops.append(announcer)
    if (signing_key := context.settings.signing_key()) is not None:
        written_to = (context.store, context.database, context.metrics, context.clock)
        loops.append(SnapshotWriter(signing_key, context.settings, *written_to))
    return loops


def _watch(app: FastAPI, loops: list[Loop]) -> None:
    """Let the probes and the metrics read the heartbeats of these loops."""
    app.state.loops = loops
    for loop in loops:
        app.state.context.metrics.loop_age.labels(loop.name).set_function(loop.age)


def _deliverer(context: Context) -> Deliverer:
    count = context.metrics.webhook_deliveries
    cipher = SecretCipher(context.settings.encryption_key)
    sender = Sender(context.settings.webhook_prefixes, cipher=cipher)
    return Deliverer(
        context.database, sender, context.clock, lambda outcome: count.labels(outcome).inc()
    )


def _release_leases(loops: list[Loop]) -> None:
    """Release the leases of all loops; if the database does not respond, they expire."""
    for loop in loops:
        try:
            loop.release()
        except DatabaseError as error:
            logger.warning("the leases of %s were not released: %s", loop.name, error)


def open_spans(environment: Mapping[str, str] = os.environ) -> Spans:
    """Traces as the OTEL_* variables ask. Raises ValueError for an unsupported exporter."""
    if (exporter := exporter_from(environment)) is None:
        return Spans()
    from service.telemetry.otel import OpenTelemetrySpans

    return OpenTelemetrySpans(exporter)


# Connections of the proxy, and files of the database, object storage and child processes.
_DESCRIPTORS = 8192
# The proxy keeps connections for 30 s after a response, and is the one to close them.
_KEEP_ALIVE_SECONDS = 75
# A client that stops reading would keep the process from exiting.
_GRACEFUL_SECONDS = 10


def make_server(
    app: ASGIApp, settings: Settings, log_config: dict[str, Any] | None = None
) -> uvicorn.Server:
    """Create the server for `app`; its `run()` serves until a signal stops it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _DESCRIPTORS:
        wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            ws="none",
            # Overrides uvicorn's own environment variable: settings have one source.
            forwarded_allow_ips=list(settings.trusted_proxies),
            log_config=log_config,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_GRACEFUL_SECONDS,
        )
    )


# In the order of the API description.
_MODULES = (models, versions, uploads, datasets, jobs, events, webhooks, keys, operations, openapi)


@cache
def api_routes() -> list[BaseRoute]:
    """Return the routes. All apps of a process share them: FastAPI describes each on first use, which takes long."""
    router = APIRouter(
        dependencies=[Depends(require_body_type)],
        responses=PROBLEMS,
        generate_unique_id_function=operation_id,
    )
    for module in _MODULES:
        router.include_router(module.router)
    return router.routes
