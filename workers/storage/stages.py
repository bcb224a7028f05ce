"""The stages of a preparation or an attempt: measured as it runs, and reported to the control plane, which exports
spans. So these processes need no connection to a collector of traces, and cannot be delayed by one.
"""

import logging
import time
from collections import deque
from datetime import UTC, datetime

from cmcl.contract.errors import StorageUnavailable
from cmcl.contract.job import MOST_STAGES, Stage, StageReport
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)


class StageLog:
    """Measures stages, one after the other; without a traceparent, nothing. For one thread.

    Of more than MOST_STAGES, the last ones are kept.
    """

    def __init__(self, traceparent: str | None) -> None:
        self._traceparent = traceparent
        self._ended: deque[Stage] = deque(maxlen=MOST_STAGES)
        self._current: tuple[str, datetime, float] | None = None

    def enter(self, name: str | None) -> None:
        """End the current stage, and begin one of this name; None: begin none."""
        if self._traceparent is None:
            return
        if self._current is not None:
            before, at, began = self._current
            stage = Stage(name=before, began_at=at, seconds=time.monotonic() - began)
            self._ended.append(stage)
        self._current = None if name is None else (name, datetime.now(UTC), time.monotonic())

    def write(self, store: ObjectStore, key: str) -> None:
        """End the current stage, and write the report. Without a store the trace has no stages."""
        if self._traceparent is None:
            return
        self.enter(None)
        report = StageReport(traceparent=self._traceparent, stages=tuple(self._ended))
        try:
            store.put(key, report.model_dump_json().encode())
        except StorageUnavailable as error:
            logger.warning("%s was not written: %s", key, error)
