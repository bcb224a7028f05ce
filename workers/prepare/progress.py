"""Progress and cancellation of datasets in preparation.

One thread writes progress.json of all of them. A request that is removed or replaced ends the units of its dataset that
are in work.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from cmcl.contract.errors import InvalidVersion, ObjectNotFound, StorageUnavailable
from cmcl.contract.prepare import PreparationPhase, PrepareProgress, PrepareRequest
from cmcl.storage import layout
from cmcl.storage.documents import read_document, write_document
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.uris import open_store
from cmcl.tracing import StageLog
from workers.prepare.units import DatasetContext, UnitRecord
from workers.sandbox.child import Child

# Object stores charge for every write, and people do not read faster than this.
_SECONDS_BETWEEN_WRITES = 0.5
# A report that is several times as old means that the driver has died.
_HEARTBEAT_SECONDS = 5.0

_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class RowCounts:
    """Counts: rows with a verdict, rows of these that are left out, and all rows (0: unknown)."""

    done: int = 0
    bad: int = 0
    total: int = 0

    @classmethod
    def from_records(cls, records: Iterable[UnitRecord]) -> Self:
        """Count the rows of these units, which are all units of a dataset."""
        done = bad = 0
        for record in records:
            done, bad = done + record.rows, bad + len(record.rejected)
        return cls(done, bad, done)


class DatasetProgress:
    """Progress of one dataset. The thread of the dataset reports to it, and calls `check` to find a cancellation."""

    def __init__(
        self,
        dataset: str,
        request: int,
        clock: Callable[[], float] = time.monotonic,
        traceparent: str | None = None,
    ) -> None:
        self.dataset, self.request = dataset, request
        self.rows = RowCounts()
        self.encoded = 0
        self._clock = clock
        self._phase: PreparationPhase = "waiting"
        self._stages = StageLog(traceparent)
        self._stages.enter(self._phase)
        self._began = clock()
        self._units_done = self._units = 0
        # Rows of units that are not done yet. A retry does not lower them: what fails again is no progress.
        self._in_work: dict[int, int] = {}
        self._note: str | None = None
        self._is_cancelled = threading.Event()

    def enter(self, phase: PreparationPhase, rows: int = 0, units: int = 0) -> None:
        """Begin a phase. `rows`: number of rows of all units, 0 if it is unknown."""
        self._phase, self._began, self._note = phase, self._clock(), None
        self._stages.enter(phase)
        if units:
            self.rows, self._units, self._units_done = RowCounts(total=rows), units, 0
            self._in_work = {}

    def unit_in_work(self, index: int, rows: int) -> None:
        """Note how many rows of a unit are done."""
        if rows > self._in_work.get(index, 0):
            self._in_work[index] = rows
            self._note = None

    def unit_done(self, index: int, record: UnitRecord) -> None:
        """Add the rows of a unit."""
        rows = self.rows
        self._in_work.pop(index, None)
        self.rows = RowCounts(rows.done + record.rows, rows.bad + len(record.rejected), rows.total)
        self.encoded += record.encoded
        self._units_done += 1
        self._note = None

    def restart(self, records: Mapping[int, UnitRecord]) -> None:
        """Count from these units on, because the other units are read again."""
        total = self.rows.total
        self.rows, self._units_done = RowCounts(total=total), 0
        for index, record in records.items():
            self.unit_done(index, record)

    def write_stages(self, store: ObjectStore) -> None:
        """Report the stages of a traced preparation. Call it before the result is written, which is taken at once."""
        self._stages.write(store, layout.preparation_file(self.dataset, "stages"))

    def check(self, note: str) -> None:
        """Set the note, which says what the dataset waits for; empty: nothing. Raises Cancelled."""
        if self._is_cancelled.is_set():
            raise Cancelled("the request is no longer there")
        self._note = note or None

    def cancel(self) -> None:
        """Make the next `check` raise Cancelled."""
        self._is_cancelled.set()

    def snapshot(self) -> PrepareProgress:
        """Return the current progress."""
        rows, seconds = self.rows, max(self._clock() - self._began, 1e-9)
        done = rows.done
        if self._phase in ("reading", "encoding"):
            done += sum(self._in_work.values())
        # The size of the other units is unknown where that of all rows is.
        units = self._units_done / self._units if self._units else 0.0
        share = done / rows.total if rows.total else units
        is_counting = self._phase in ("reading", "encoding") and share > 0
        return PrepareProgress(
            request=self.request,
            phase=self._phase,
            rows_done=done,
            rows_total=rows.total,
            bad_rows=rows.bad,
            rows_per_second=done / seconds if is_counting else None,
            eta_seconds=max(0.0, 1 / share - 1) * seconds if is_counting else None,
            note=self._note,
            at=datetime.now(UTC),
        )


class ProgressWriter:
    """Writes the progress of datasets: changes at most every half second, and a heartbeat every 5 s.

    A write that fails is not repeated: the next one has newer progress.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._watched: dict[str, DatasetProgress] = {}
        self._written: dict[str, tuple[PrepareProgress, float]] = {}
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join(_HEARTBEAT_SECONDS)

    def watch(self, progress: DatasetProgress) -> None:
        """Start to write this progress."""
        with self._lock:
            self._watched[progress.dataset] = progress

    def forget(self, progress: DatasetProgress) -> None:
        """Stop writing this progress."""
        with self._lock:
            if self._watched.get(progress.dataset) is progress:
                del self._watched[progress.dataset]
                self._written.pop(progress.dataset, None)

    def write(self) -> None:
        """Write progress that has changed, or was written some seconds ago."""
        with self._lock:
            watched = list(self._watched.values())
        for progress in watched:
            latest, now = progress.snapshot(), time.monotonic()
            before, at = self._written.get(progress.dataset, (None, 0.0))
            if before is None or _differs(before, latest) or now - at >= _HEARTBEAT_SECONDS:
                key = layout.preparation_file(progress.dataset, "progress")
                write_document(self._store, key, latest)
                self._written[progress.dataset] = (latest, now)

    def _run(self) -> None:
        while not self._has_ended.wait(_SECONDS_BETWEEN_WRITES):
            try:
                self.write()
            except Exception as error:  # noqa: BLE001
                # An error of any kind must not end the thread of the heartbeat.
                print(f"progress was not written: {error}", flush=True)


def _differs(one: PrepareProgress, other: PrepareProgress) -> bool:
    """Return whether they differ in more than times and rates."""
    clock = {"at", "rows_per_second", "eta_seconds"}
    return one.model_dump(exclude=clock) != other.model_dump(exclude=clock)


class Cancelled(Exception):
    """The request was removed or replaced."""


class Watch:
    """Cancels the unit in work when its request is removed, whether or not the driver is alive."""

    def __init__(self, context: DatasetContext, child: Child) -> None:
        self.is_cancelled = False
        self._context, self._child = context, child
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._has_ended.set()
        self._thread.join()
        if self.is_cancelled and isinstance(error, Exception):
            # Its child was killed.
            raise Cancelled("the request is no longer there") from error

    def check(self) -> None:
        """Raises Cancelled once the request was removed."""
        if self.is_cancelled:
            raise Cancelled("the request is no longer there")

    def _look(self) -> None:
        store = open_store(self._context.store)
        while not self._has_ended.wait(_SECONDS_BETWEEN_LOOKS):
            self.is_cancelled = self.is_cancelled or not is_current(store, self._context)
            if self.is_cancelled:
                # In each round, because a task is repeated after its first crash.
                self._child.kill()


def is_current(store: ObjectStore, context: DatasetContext) -> bool:
    """Return whether the request of this context is still there; True if the store does not answer."""
    try:
        key = layout.preparation_request(context.dataset)
        return read_document(store, key, PrepareRequest).request == context.request
    except StorageUnavailable:
        return True
    except (ObjectNotFound, InvalidVersion):
        return False
