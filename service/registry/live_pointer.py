"""Writes a model's serving state from the database to live.json, which replicas read.

The contents of live.json have one revision, incremented with each change; the database records the
written revision. A late process may overwrite or recreate what another has written or removed: it
notices when it records its revision, and live.json is written again. If a process dies before that, the
comparison at the next start repairs it.

A changed pointer is also announced to the embeddings endpoint. That saves latency only: replicas poll object storage.
"""

import logging
import threading
import time
from collections.abc import Callable

import httpx
from sqlalchemy import Connection

from cmcl.contract.errors import InvalidVersion, StorageError
from cmcl.contract.version import ANNOUNCEMENTS, LivePointer
from cmcl.storage.versions import read_live, remove_live, write_live
from service.auth.ownership import get_model
from service.context import Context
from service.core.loops import PeriodicLoop
from service.core.principal import Principal
from service.database.queries import models, versions
from service.database.rows import ModelRow
from service.database.stale import check_model_not_stale
from service.telemetry.spans import Attributes, PastSpan

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 2.0
_PAUSE_AFTER_FAILURE_SECONDS = 5.0
# Upper bound on how long the loop takes to see that the service stops.
_WAIT_SECONDS = 1.0


def write(context: Context, name: str) -> None:
    """Write live.json from the database, or remove a deleted model's, and announce it.

    Raises StaleDatabase if live.json is ahead of the database: it is never overwritten then.
    """
    check_model_not_stale(context.store, context.database, name)
    with context.database.read() as connection:
        model = models.find(connection, name)
        pointer = None if model is None else _pointer(connection, model)
    if model is None or pointer is None:
        return
    about: Attributes = {"cmcl.model": name, "cmcl.version": pointer.version}
    with context.metrics.spans.step(pointer.traceparent, "step pointer", about):
        if model.deleted_at is None:
            write_live(context.store, name, pointer)
        else:
            remove_live(context.store, name)
    context.announce()
    if _record_written(context, model) and model.revised_at is not None:
        seconds = (context.clock() - model.revised_at).total_seconds()
        context.metrics.spans.add(PastSpan("live", model.traceparent, seconds, about))


def check_may_change(context: Context, name: str, principal: Principal) -> None:
    """Check before a change of what replicas serve. Raises NotFound, StaleDatabase.

    A change increments the database's generation or revision: in an stale database it could reach
    numbers that replicas have already seen, and they would ignore it. While the store is down a
    rollback is still accepted; the announcer checks again.
    """
    with context.database.read() as connection:
        get_model(connection, name, principal)
    try:
        check_model_not_stale(context.store, context.database, name)
    except StorageError as error:
        logger.warning("cannot check whether the database is stale for model %s: %s", name, error)


def _record_written(context: Context, model: ModelRow) -> bool:
    """Record that live.json has this revision. Returns whether this call did it."""
    with context.database.write() as connection:
        if models.set_pointer_written(connection, model.name, model.live_revision):
            return True
        now = models.lock(connection, model.name)
        if now is not None and now.live_revision != model.live_revision:
            # Another process wrote a later revision, and this write may have come after it.
            models.forget_pointer_written(connection, model.name)
        return False


def recheck_pointer(context: Context, model: ModelRow) -> None:
    """After a start, have it written again if live.json differs from what the database recorded.

    Raises StaleDatabase.
    """
    check_model_not_stale(context.store, context.database, model.name)
    if _differs(context, model):
        with context.database.write() as connection:
            models.forget_pointer_written(connection, model.name)


def _pointer(connection: Connection, model: ModelRow) -> LivePointer | None:
    """None before the first promotion.

    The model was read first: what is read here has its revision or a newer one, which is written
    next. In the opposite order it could be older, and stay so.
    """
    if model.live_version is None:
        return None
    assert model.live_generation >= 1
    return LivePointer(
        generation=model.live_generation,
        version=model.live_version,
        revision=model.live_revision,
        owner=model.owner,
        retired=versions.retired(connection, model.name),
        traceparent=model.traceparent,
    )


def _differs(context: Context, model: ModelRow) -> bool:
    try:
        pointer = read_live(context.store, model.name)
    except InvalidVersion:
        return True
    if model.deleted_at is not None:
        return pointer is not None
    return pointer is None or pointer.revision < model.written_revision


class Announcer(PeriodicLoop):
    """Announces to the embeddings endpoint that pointers have changed. `announce` never waits; any thread may call it.

    All changes that wait are one announcement: replicas read from the store what has changed. Nothing is retried, and an
    endpoint that failed gets no announcement for some seconds.
    """

    name = "announcer"
    pause_seconds = 0.0

    def __init__(self, url: str, seconds: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._url = f"{url.rstrip('/')}{ANNOUNCEMENTS}"
        self._now = seconds
        self._changed = threading.Event()
        self._paused_until = float("-inf")

    def announce(self) -> None:
        self._changed.set()

    def step(self, stop: threading.Event) -> float:
        if self._changed.wait(_WAIT_SECONDS):
            # Proxies of the environment are for the internet, and this address is internal.
            with httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
                self.send(client)
        return self.pause_seconds

    def send(self, client: httpx.Client) -> None:
        """Send what waits, if anything does."""
        if not self._changed.is_set():
            return
        # First: a change during the request is announced by the next one.
        self._changed.clear()
        if self._now() < self._paused_until:
            return
        try:
            client.post(self._url).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self._paused_until = self._now() + _PAUSE_AFTER_FAILURE_SECONDS
            logger.warning("announcement to %s failed: %s", self._url, error)
