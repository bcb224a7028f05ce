"""The one place where the parts of the control plane are wired together."""

import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version

from fastapi import Depends, FastAPI
from pydantic import SecretStr

from cmcl.contract import DISTRIBUTION
from service.api.dependencies import require_body_type
from service.api.middleware.at_work import AtWork
from service.api.middleware.authentication import Authentication
from service.api.middleware.bodies import Bodies
from service.api.middleware.hosts import Hosts
from service.api.middleware.request_log import RequestLog
from service.api.openapi import PROBLEMS, DescribedApp, operation_id
from service.api.places import Places
from service.api.problems import add_problem_handlers
from service.api.routes import (
    candidates,
    datasets,
    description,
    events,
    jobs,
    keys,
    models,
    operations,
    preflights,
    uploads,
    versions,
    webhooks,
)
from service.api.shares import FairSemaphore
from service.clock import Clock, utc_now
from service.control.access.doorkeeper import Doorkeeper, TokenReader
from service.control.announcer import Announcer
from service.control.bell import Bell
from service.control.context import Context
from service.control.feed import Feed
from service.control.preflights import PreflightRounds
from service.control.reconcile import Reconciler
from service.control.records.recorder import Recorder
from service.control.sweep.sweeper import Sweeper
from service.control.validation.apart import Apart, share_of_memory
from service.control.validation.threads import DaemonThreads
from service.control.validation.validations import Validations
from service.control.webhooks.deliverer import Deliverer
from service.control.webhooks.encryption import SecretCipher, encrypt_stored
from service.control.webhooks.sender import Sender
from service.database.engine import Database, open_database
from service.database.migrations import upgrade
from service.errors import DatabaseError
from service.launchers.breaker import Breaker
from service.launchers.driver import Driver
from service.launchers.kuberay.pods import read_pod_templates
from service.launchers.kuberay.resource import Site
from service.launchers.port import Launcher
from service.launchers.ray.launcher import RayJobLauncher
from service.observe.backlog import BacklogCollector
from service.observe.database import MeteredDatabase
from service.observe.figures import FiguresCollector
from service.observe.happenings import Witness
from service.observe.metered import MeteredLauncher, MeteredStore
from service.observe.metrics import Metrics
from service.observe.spans import Spans, open_spans
from service.observe.training import TrainingCollector
from service.observe.trials import TrialCollector
from service.settings import Settings
from workers.storage.object_store import ObjectStore
from workers.storage.uris import open_store

logger = logging.getLogger(__name__)

_STOP_SECONDS = 10.0

# In the order in which the description of the API shows them.
_ROUTES = (
    models,
    versions,
    candidates,
    uploads,
    datasets,
    jobs,
    events,
    preflights,
    webhooks,
    keys,
    operations,
    description,
)

# Goes on until the event is set.
Loop = Callable[[threading.Event], None]
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Parts:
    """What tests replace; None means the real thing, as the settings say.

    With an `executor`, datasets are validated and candidates are judged there, within this process.
    """

    store: ObjectStore | None = None
    launcher: Launcher | None = None
    executor: Executor | None = None
    clock: Clock = utc_now
    spans: Spans | None = None


def create_app(settings: Settings, parts: Parts | None = None) -> FastAPI:
    """The control plane. Its reconciler runs from the start of the server to its end."""
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
        # Ours are rendered once, and load nothing from elsewhere: routes/description.py.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = context
    app.state.reconciler = reconciler
    app.state.probes = operations.Probes()
    app.state.rendered_metrics = operations.keep_metrics(context)
    app.state.description = description.Description(app.openapi)
    app.state.part_places = Places(settings.upload_parts_at_once)
    app.state.completions = FairSemaphore(
        *(uploads.COMPLETED_AT_ONCE, uploads.COMPLETED_AT_ONCE),
        uploads.COMPLETIONS_WAITING_OF_OWNER,
    )
    app.state.feed = Feed(context.database, is_stopping=events.is_server_stopping)
    context.metrics.round_age.set_function(reconciler.seconds_since_round)
    for module in _ROUTES:
        app.include_router(module.router)
    add_problem_handlers(app)
    # Outermost last.
    app.add_middleware(AtWork)
    app.add_middleware(
        Bodies,
        api=app,
        max_bytes=settings.max_body_bytes,
        max_part_bytes=settings.upload_part_bytes_max,
    )
    hosts = Hosts(settings.allowed_hosts)
    app.add_middleware(Authentication, doorkeeper=context.doorkeeper, hosts=hosts)
    app.add_middleware(RequestLog, metrics=context.metrics)
    return app


def create_context(settings: Settings, parts: Parts) -> Context:
    """The parts, with the newest form of the tables in place. The database is closed on any error."""
    metrics, bell = Metrics(parts.spans or open_spans()), Bell()
    opened = open_database(settings.database_url)
    database = MeteredDatabase(opened, metrics, Witness(metrics, bell.ring))
    try:
        # A newer release may have left tables that are no use here.
        upgrade(database)
        return _context(settings, parts, database, metrics, bell)
    except BaseException:
        database.close()
        raise


def _context(
    settings: Settings, parts: Parts, database: Database, metrics: Metrics, bell: Bell
) -> Context:
    metrics.registry.register(BacklogCollector(database, parts.clock))
    metrics.registry.register(FiguresCollector(database, parts.clock))
    metrics.registry.register(TrainingCollector(database, parts.clock))
    metrics.registry.register(TrialCollector(database, parts.clock))
    return Context(
        settings=settings,
        database=database,
        doorkeeper=Doorkeeper(settings, database, parts.clock, _tokens(settings)),
        store=MeteredStore(parts.store or open_store(settings.store_uri), metrics),
        launcher=Breaker(MeteredLauncher(parts.launcher or _launcher(settings), metrics)),
        validations=_validations(settings, parts, bell),
        threads=parts.executor or DaemonThreads("step"),
        bell=bell,
        announcer=_announcer(settings, metrics),
        metrics=metrics,
        clock=parts.clock,
    )


def _announcer(settings: Settings, metrics: Metrics) -> Announcer:
    count = metrics.announcements
    return Announcer(settings.embeddings_url, lambda outcome: count.labels(outcome).inc())


def _tokens(settings: Settings) -> TokenReader | None:
    if not settings.oidc_issuer or not settings.oidc_audience:
        return None
    # Cryptography takes a while to import; most have no issuer.
    from service.control.access.tokens import Tokens

    return Tokens(settings.oidc_issuer, settings.oidc_audience, settings.oidc_owner_claim)


def _validations(settings: Settings, parts: Parts, bell: Bell) -> Validations:
    if parts.executor is not None:
        return Validations(parts.executor, bell.ring)
    apart = Apart(settings.validation_deadline_seconds, share_of_memory())
    return Validations(DaemonThreads("validation"), bell.ring, apart)


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
    # Its client of Kubernetes takes half a second to import; most have no need of it.
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
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        context.doorkeeper.warn_without_keys()
        encrypt_stored(context.database, SecretCipher(context.settings.encryption_key))
        stop = threading.Event()
        # Daemons: a call that hangs must not keep the process from ending. Nothing is lost.
        threads = [
            threading.Thread(target=loop, args=[stop], name=name, daemon=True)
            for name, loop in _loops(context, reconciler).items()
        ]
        for thread in threads:
            thread.start()
        yield
        stop.set()
        for thread in threads:
            thread.join(_STOP_SECONDS)
        _leave(reconciler)
        context.close()

    return lifespan


def _loops(context: Context, reconciler: Reconciler) -> dict[str, Loop]:
    loops: dict[str, Loop] = {
        "reconciler": reconciler.run,
        "preflights": PreflightRounds(context).run,
        "webhooks": _deliverer(context).run,
        "sweeper": Sweeper(context).run,
        "recorder": Recorder(context).run,
    }
    if context.settings.embeddings_url:
        loops["announcer"] = context.announcer.run
    if context.settings.snapshot_signing_key is not None:
        loops["keys"] = _snapshot_loop(context, context.settings.snapshot_signing_key)
    return loops


def _snapshot_loop(context: Context, signing_key: SecretStr) -> Loop:
    # Cryptography takes a while to import; most have no such key.
    from service.control.access.signing import read_signing_key
    from service.control.access.snapshot import SnapshotWriter

    return SnapshotWriter(context, read_signing_key(signing_key.get_secret_value())).run


def _deliverer(context: Context) -> Deliverer:
    count = context.metrics.webhook_deliveries
    cipher = SecretCipher(context.settings.encryption_key)
    sender = Sender(context.settings.webhook_prefixes, cipher=cipher)
    return Deliverer(
        context.database, sender, context.clock, lambda outcome: count.labels(outcome).inc()
    )


def _leave(reconciler: Reconciler) -> None:
    """Without a database that answers, the leases run out by themselves."""
    try:
        reconciler.stop()
    except DatabaseError as error:
        logger.warning("leases were not given back: %s", error)
