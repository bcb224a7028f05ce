"""Tells of drift of live queries, which replicas of the endpoint report to the store: a metric, and an event when it changes."""

import logging
import threading

from cmcl.contract.drift import DriftReport
from cmcl.contract.errors import InvalidVersion, ObjectNotFound, StorageUnavailable
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from service.context import Context
from service.core.errors import DatabaseUnavailable
from service.core.loops import PeriodicLoop
from service.database.queries import models

logger = logging.getLogger(__name__)


class QueryDriftLoop(PeriodicLoop):
    """Reads the report of every model that is queried, once a minute, as they are written."""

    name = "drift"
    pause_seconds = 60.0
    outages = (StorageUnavailable, DatabaseUnavailable)
    outage_message = "drift of queries is not read; will retry"

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context

    def step(self, stop: threading.Event) -> float:
        self.look()
        return self.pause_seconds

    def look(self) -> None:
        """Set the metric, and emit an event for each model whose drifting modalities have changed.

        Raises StorageUnavailable, DatabaseUnavailable.
        """
        store, gauge = self._context.store, self._context.metrics.query_drift
        # Series of deleted models end.
        gauge.clear()
        for key in store.keys(layout.drift_reports()):
            try:
                found = read_document(store, key, DriftReport)
            except (ObjectNotFound, InvalidVersion) as error:
                logger.warning("drift of queries is not known: %s", error)
                continue
            if not self._emit(found):
                store.delete(key)
                continue
            for modality, drift in found.modalities.items():
                gauge.labels(found.model, modality).set(drift.windows[-1].level)

    def _emit(self, found: DriftReport) -> bool:
        """Return whether there is such a model."""
        with self._context.database.write() as connection:
            model = models.find(connection, found.model)
            if model is None or model.deleted_at is not None:
                return False
            if models.drifting(connection, found.model) != found.drifting:
                # Again, since another instance may have emitted it.
                models.lock(connection, found.model)
                models.set_drifting(connection, model, found, self._context.clock())
        return True
