"""Wires the parts of the control plane. The only module that does."""

import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version

from fastapi import Depends, FastAPI
from pydantic import SecretStr

from cmcl.contract import DISTRIBUTION
from service.api import (
    canary,
    datasets,
    events,
    jobs,
    keys,
    models,
    openapi,
    operations,
    preflights,
    uploads,
    versions,
    webhooks,
)
from service.api.authentication import Authentication, Hosts
from service.api.bodies import Bodies
from service.api.concurrency import ConcurrencyLimit
from service.api.dependencies import require_body_type
from service.api.fairness import FairSemaphore, UploadSlots
from service.api.openapi import PROBLEMS, DescribedApp, operation_id
from service.api.problems import add_problem_handlers
from service.api.request_log import RequestLog
from service.auth.authenticator import Authenticator, TokenVerifier
from service.clock import Clock, utc_now
from service.context import Context
from service.database.engine import Database, open_database
from service.database.migrations import upgrade
from service.datasets.subprocess_validator import SubprocessValidator, share_of_memory
from service.datasets.validations import Validations
from service.errors import DatabaseError
from service.events.feed import Feed
from service.events.webhook_delivery import Deliverer
from service.events.webhook_secrets import SecretCipher, encrypt_stored
from service.events.webhook_sender import Sender
from service.jobs.preflights import PreflightReconciler
from service.jobs.reconciler import Reconciler
from service.jobs.workqueue import DaemonThreads, WakeSignal
from service.launchers.circuit_breaker import CircuitBreaker
from service.launchers.kuberay.resource import Site, read_pod_templates
from service.launchers.port import Launcher
from service.launchers.ray_jobs import Driver, RayJobLauncher
from service.loops import Loop, MemoryReleaser
from service.maintenance.backup import BackupWriter
from service.maintenance.gc import GarbageCollector
from service.registry.announcer import Announcer
from service.settings import Settings
from service.telemetry.backlog import BacklogCollector
from service.telemetry.event_observer import EventObserver
from service.telemetry.instrumented import (
    InstrumentedDatabase,
    InstrumentedLauncher,
    InstrumentedStore,
)
from service.telemetry.metrics import Metrics
from service.telemetry.models import CanaryCollector, ModelCollector, TrainingCollector
from service.telemetry.spans import NoSpans, Spans, is_configured
from workers.storage.object_store import ObjectStore
from workers.storage.uris import open_store

logger = logging.getLogger(__name__)

_STOP_SECONDS = 10.0

# In the order of the API description.
_ROUTES = (
    models,
    versions,
    canary,
    uploads,
    datasets,
    jobs,
    events,
    preflights,
    webhooks,
    keys,
    operations,
    openapi,
)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Parts:
    """Parts that tests replace; None stands for the one that the settings describe.

    With an `executor`, datasets are validated and candidates are judged there, in this process.
    """

    store: ObjectStore | None = None
    launcher: Launcher | None = None
    executor: Executor | None = None
    clock: Clock = utc_now
    spans: Spans | None = None


def create_app(settings: Settings, parts: Parts | None = None) -> FastAPI:
    """Create the control plane. Its loops run from the start of the server until it stops."""
    context = create_context(settings, parts or Parts())
    reconciler = Reconciler(context)
    app = DescribedApp(
        title="cmcl control plane",
        version=version(DISTRIBUTION),
        lifespan=_lifespan(context, reconciler),
        generate_unique_id_function=operation_id,
        dependencies=[Depends(require_body_type)],
        responses=PROBLEMS,
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
    app.state.upload_slots = UploadSlots(settings.upload_parts_at_once)
    app.state.completions = FairSemaphore(
        *(uploads.COMPLETED_AT_ONCE, uploads.COMPLETED_AT_ONCE),
        uploads.COMPLETIONS_WAITING_OF_OWNER,
    )
    app.state.feed = Feed(context.database, is_stopping=events.is_server_stopping)
    context.metrics.round_age.set_function(reconciler.seconds_since_round)
    # The lifespan adds the other loops, which run only with a server.
    _watch(app, [reconciler])
    for module in _ROUTES:
        app.include_router(module.router)
    add_problem_handlers(app)
    # The last one added is the outermost.
    app.add_middleware(ConcurrencyLimit)
    app.add_middleware(
        Bodies,
        api=app,
        max_bytes=settings.max_body_bytes,
        max_part_bytes=settings.upload_part_bytes_max,
    )
    hosts = Hosts(settings.allowed_hosts)
    app.add_middleware(Authentication, authenticator=context.authenticator, hosts=hosts)
    app.add_middleware(RequestLog, metrics=context.metrics)
    return app


def create_context(settings: Settings, parts: Parts) -> Context:
    """Create the parts and upgrade the tables. The database is closed on any error."""
    metrics, wake_signal = Metrics(parts.spans or open_spans()), WakeSignal()
    opened = open_database(settings.database_url)
    database = InstrumentedDatabase(opened, metrics, EventObserver(metrics, wake_signal.notify))
    try:
        # Raises if a newer release left tables that this one cannot use.
        upgrade(database)
        return _context(settings, parts, database, metrics, wake_signal)
    except BaseException:
        database.close()
        raise


def _context(
    settings: Settings, parts: Parts, database: Database, metrics: Metrics, wake_signal: WakeSignal
) -> Context:
    metrics.registry.register(BacklogCollector(database, parts.clock))
    metrics.registry.register(ModelCollector(database, parts.clock))
    metrics.registry.register(TrainingCollector(database, parts.clock))
    metrics.registry.register(CanaryCollector(database, parts.clock))
    return Context(
        settings=settings,
        database=database,
        authenticator=Authenticator(settings, database, parts.clock, _tokens(settings)),
        store=InstrumentedStore(parts.store or open_store(settings.store_uri), metrics),
        launcher=CircuitBreaker(
            InstrumentedLauncher(parts.launcher or _launcher(settings), metrics)
        ),
        validations=_validations(settings, parts, wake_signal),
        threads=parts.executor or DaemonThreads("step"),
        wake_signal=wake_signal,
        announcer=_announcer(settings, metrics),
        metrics=metrics,
        clock=parts.clock,
    )


def _announcer(settings: Settings, metrics: Metrics) -> Announcer:
    count = metrics.announcements
    return Announcer(settings.embeddings_url, lambda outcome: count.labels(outcome).inc())


def _tokens(settings: Settings) -> TokenVerifier | None:
    if not settings.oidc_issuer or not settings.oidc_audience:
        return None
    # `cryptography` takes long to import, and most deployments have no issuer.
    from service.auth.oidc import OidcTokens

    return OidcTokens(settings.oidc_issuer, settings.oidc_audience, settings.oidc_owner_claim)


def _validations(settings: Settings, parts: Parts, wake_signal: WakeSignal) -> Validations:
    if parts.executor is not None:
        return Validations(parts.executor, wake_signal.notify)
    validator = SubprocessValidator(settings.validation_deadline_seconds, share_of_memory())
    return Validations(DaemonThreads("validation"), wake_signal.notify, validator)


def _launcher(settings: Settings) -> Launcher:
    if settings.launcher == "kuberay":
        return _kuberay_launcher(settings)
    driver = Driver(
        cpus=settings.driver_cpus,
        memory_bytes=settings.driver_memory_bytes,
        resources=settings.driver_resources,
        node_labels=settings.driver_node_labels,
        runtime_env=settings.runtime_env,
    )
    return RayJobLauncher(settings.ray_address, driver)


def _kuberay_launcher(settings: Settings) -> Launcher:
    # The Kubernetes client takes half a second to import, and most deployments do not need it.
    from service.launchers.kuberay.launcher import KubeRayLauncher

    site = Site(
        image=settings.kuberay_image,
        ray_version=settings.kuberay_ray_version,
        namespace=settings.kuberay_namespace,
        release=settings.kuberay_release,
        owner=settings.kuberay_owner,
        service_account=settings.kuberay_service_account,
        queue=settings.kuberay_queue,
        priority_classes=settings.kuberay_priority_classes,
        pods=read_pod_templates(settings.kuberay_pod_template),
        ranks_per_pod=settings.kuberay_ranks_per_pod,
        gpu_resource=settings.kuberay_gpu_resource,
        submission_mode=settings.kuberay_submission_mode,
        kept_seconds=settings.kuberay_kept_seconds,
        deadline_seconds=settings.start_deadline_seconds + settings.run_deadline_seconds,
        runtime_env=settings.runtime_env,
    )
    return KubeRayLauncher(site)


def _lifespan(context: Context, reconciler: Reconciler) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        context.authenticator.warn_without_keys()
        encrypt_stored(context.database, SecretCipher(context.settings.encryption_key))
        stop = threading.Event()
        loops = _loops(context, reconciler)
        _watch(app, loops)
        # Daemons: a call that hangs must not keep the process from exiting. No state is lost.
        threads = [
            threading.Thread(target=loop.run, args=[stop], name=loop.name, daemon=True)
            for loop in loops
        ]
        for thread in threads:
            thread.start()
        yield
        stop.set()
        for thread in threads:
            thread.join(_STOP_SECONDS)
        _release_leases(reconciler)
        context.close()

    return lifespan


def _loops(context: Context, reconciler: Reconciler) -> list[Loop]:
    """All loops of this process."""
    loops: list[Loop] = [
        reconciler,
        PreflightReconciler(context),
        _deliverer(context),
        GarbageCollector(context),
        MemoryReleaser(),
        BackupWriter(context),
    ]
    if context.settings.embeddings_url:
        loops.append(context.announcer)
    if context.settings.snapshot_signing_key is not None:
        loops.append(_snapshot_writer(context, context.settings.snapshot_signing_key))
    return loops


def _watch(app: FastAPI, loops: list[Loop]) -> None:
    """Let the probes and the metrics read the heartbeats of these loops."""
    app.state.loops = loops
    metrics: Metrics = app.state.context.metrics
    for loop in loops:
        metrics.loop_age.labels(loop.name).set_function(loop.age)


def _snapshot_writer(context: Context, signing_key: SecretStr) -> Loop:
    # `cryptography` takes long to import, and most deployments have no such key.
    from service.auth.signing import read_signing_key
    from service.maintenance.key_snapshot import SnapshotWriter

    return SnapshotWriter(context, read_signing_key(signing_key.get_secret_value()))


def _deliverer(context: Context) -> Deliverer:
    count = context.metrics.webhook_deliveries
    cipher = SecretCipher(context.settings.encryption_key)
    sender = Sender(context.settings.webhook_prefixes, cipher=cipher)
    return Deliverer(
        context.database, sender, context.clock, lambda outcome: count.labels(outcome).inc()
    )


def _release_leases(reconciler: Reconciler) -> None:
    """Release the leases of models; if the database does not respond, they expire."""
    try:
        reconciler.stop()
    except DatabaseError as error:
        logger.warning("leases were not released: %s", error)


def open_spans(environment: Mapping[str, str] = os.environ) -> Spans:
    """Traces as the OTEL_* variables ask. Raises ValueError for an unsupported exporter."""
    if not is_configured(environment):
        return NoSpans()
    # Slow to import, so only where traces are collected.
    from service.telemetry.otel import OpenTelemetrySpans, exporter_named

    return OpenTelemetrySpans(exporter_named(environment.get("OTEL_TRACES_EXPORTER", "otlp")))
