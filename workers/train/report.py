"""What a job tells while it runs (progress.json), and how long each phase took."""

import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from cmcl.contract.errors import InvalidDataset, StoreDamaged, WorkerError
from cmcl.contract.job import Failure, FailureReason, JobSpec, Phase, Progress
from workers.storage.layout import run_failure, run_progress
from workers.storage.port import ObjectStore
from workers.train.distributed import World
from workers.train.run import UpdateDone, Watcher

# An object store charges for every write; people do not read faster than this.
_SECONDS_BETWEEN_WRITES = 0.5
# So long is the end of a job waited for to be written. Whoever reads it sees the candidate, too.
_LAST_WORD_SECONDS = 5.0
# A phase may take minutes; a progress that is older than some of these is that of a dead attempt.
HEARTBEAT_SECONDS = 5.0
# What says nothing about the phase that comes next; what was trained is told to the end.
_OF_ONE_PHASE = {"rows_done": 0, "rows_total": 0, "rows_per_second": None, "eta_seconds": None}


class Reporter(Watcher):
    """Keeps the seconds of each phase; the leading rank also writes progress for all to see.

    Within `with`, a thread writes what was told last, and again where nothing was told for `heartbeat`
    seconds: whoever reads it can tell a slow attempt from a dead one. Training neither waits for the
    store nor hears of its errors.
    """

    def __init__(
        self,
        store: ObjectStore,
        spec: JobSpec,
        here: World,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._store, self._spec, self._here = store, spec, here
        self.seconds: dict[str, float] = {}
        self._phase: Phase = "starting"
        self._phase_began = self._last_told = time.monotonic()
        self._resumed_at: int | None = None
        self._progress = self._snapshot()
        self._heartbeat, self._ended, self._news = heartbeat, threading.Event(), threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        if self._here.leads:
            self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._news.set()
        if self._heart.is_alive():
            self._heart.join(_LAST_WORD_SECONDS)

    def enter(self, phase: Phase) -> None:
        """End the current phase and begin the next one."""
        now = time.monotonic()
        spent = now - self._phase_began
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + round(spent, 3)
        self._phase, self._phase_began = phase, now
        self._tell(self._progress.model_copy(update={"phase": phase, **_OF_ONE_PHASE}))

    def rows_read(self, done: int, total: int) -> None:
        """Told after some rows; heard now and then. Ranks read alike, so ours are scaled up."""
        if self.is_curious():
            size, seconds = self._here.size, self._seconds_of_phase()
            self._tell(
                self._snapshot(
                    rows_done=done * size,
                    rows_total=max(done, total) * size,
                    rows_per_second=done * size / seconds,
                    eta_seconds=max(total - done, 0) * seconds / max(done, 1),
                )
            )

    def resumed(self, updates: int) -> None:
        """Told before the first update of a run that goes on from a checkpoint."""
        self._resumed_at = updates
        self._tell(self._snapshot(updates_done=updates))

    def is_curious(self) -> bool:
        """Whether it is time to tell again, or the first update is due; never where none is written."""
        age = time.monotonic() - self._last_told
        is_first = self._phase == "training" and not self._progress.updates_done
        return self._here.leads and (is_first or age > _SECONDS_BETWEEN_WRITES)

    def update_done(self, update: UpdateDone) -> None:
        """Told after every update; heard where it was curious, and after the last one."""
        if not self._here.leads or (update.sight is None and update.done < update.total):
            return
        seconds = self._seconds_of_phase()
        updates = update.done - (self._resumed_at or 0)
        self._tell(
            self._snapshot(
                updates_done=update.done,
                updates_total=update.total,
                # The loss of the whole batch would cost a collective: ranks draw alike, so scale up.
                loss=float(update.local_loss) * self._here.size,
                rows_per_second=updates * self._spec.spec.training.batch_size / seconds,
                eta_seconds=(update.total - update.done) * seconds / max(updates, 1),
                **(asdict(update.sight) if update.sight else {}),
            )
        )

    def _seconds_of_phase(self) -> float:
        return max(time.monotonic() - self._phase_began, 1e-9)

    def _snapshot(self, **told: float | int | None) -> Progress:
        return Progress.model_validate(
            {
                "phase": self._phase,
                "ranks": self._here.size,
                "resumed_at": self._resumed_at,
                "at": datetime.now(UTC),
                **told,
            }
        )

    def _tell(self, progress: Progress) -> None:
        self._progress, self._last_told = progress, time.monotonic()
        self._news.set()

    def _beat(self) -> None:
        """Until the end, which is written as well."""
        is_last = False
        while not is_last:
            self._news.wait(self._heartbeat)
            is_last = self._ended.is_set()
            self._news.clear()
            self._write()

    def _write(self) -> None:
        """What was told last, with the time of now."""
        key = run_progress(self._spec.job, self._spec.attempt)
        told = self._progress.model_copy(update={"at": datetime.now(UTC)})
        try:
            self._store.put(key, told.model_dump_json().encode())
        except Exception as error:  # noqa: BLE001
            # Progress is for those who watch; whatever is wrong with it must not end the thread
            # that says that training goes on.
            print(f"progress was not written: {error}", flush=True)


def leave_failure(store: ObjectStore, spec: JobSpec, error: WorkerError) -> None:
    """Tell the control plane, in the user's words, that another attempt would not help."""
    failure = Failure(reason=_reason(error), message=str(error))
    key = run_failure(spec.job, spec.attempt)
    store.put(key, failure.model_dump_json().encode())


def _reason(error: WorkerError) -> FailureReason:
    match error:
        case InvalidDataset():
            return "invalid_dataset"
        case StoreDamaged():
            return "store_damaged"
        case _:
            return "training_failed"
