"""Progress of a running job, the seconds of each phase, and failure.json."""

import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from cmcl.contract.errors import CannotCombine, InvalidDataset, StoreDamaged, WorkerError
from cmcl.contract.job import AttemptFailureReason, Failure, JobSpec, Phase, Progress
from cmcl.storage import layout
from cmcl.storage.documents import write_document
from cmcl.storage.object_store import ObjectStore, retry_unavailable, unavailable_because
from cmcl.storage.running import ProgressWriter, mark_ended
from cmcl.tracing import StageLog
from workers.train.distributed import World
from workers.train.run import UpdateDone, Watcher

# Object stores charge for every write, and people do not read faster than this.
_SECONDS_BETWEEN_WRITES = 0.5
# How long to wait for the last write at the end of a job. Readers see the candidate anyway.
_LAST_WRITE_SECONDS = 5.0
# A phase may take minutes. Progress that is several heartbeats old is that of a dead attempt. With the interval at which
# the control plane looks, what it shows is less than five seconds old.
HEARTBEAT_SECONDS = 3.0
# Fields that are reset when a phase begins. Updates and loss stay to the end.
_OF_ONE_PHASE = {"rows_done": 0, "rows_total": 0, "rows_per_second": None, "eta_seconds": None}


class Reporter(Watcher):
    """Measures the seconds of each phase. On rank 0 it also writes progress to the store.

    Inside of `with`, a thread writes the latest progress, at least every `heartbeat` seconds, so that
    readers can distinguish a slow attempt from a dead one. Training does not wait for the store and is
    not affected by its errors.
    """

    def __init__(
        self,
        store: ObjectStore,
        spec: JobSpec,
        here: World,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._writer = ProgressWriter(store, spec.job, spec.attempt)
        self._store, self._spec, self._here = store, spec, here
        # The heartbeat reads seconds and phase together.
        self._clock = threading.Lock()
        self.seconds: dict[Phase, float] = {}
        self._phase: Phase = "starting"
        self._phase_began = self._reported_at = time.monotonic()
        self._stages = StageLog(spec.traceparent if here.is_leader else None)
        self._stages.enter(self._phase)
        self._resumed_at: int | None = None
        self._progress = self._snapshot()
        self._heartbeat, self._ended, self._news = heartbeat, threading.Event(), threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        if self._here.is_leader:
            self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop_heart()

    def enter(self, phase: Phase) -> None:
        """End the current phase and begin the next one."""
        with self._clock:
            now = time.monotonic()
            assert now >= self._phase_began
            self.seconds = self._seconds_until(now)
            self._phase, self._phase_began = phase, now
        self._stages.enter(None if phase == "done" else phase)
        self._report(self._progress.model_copy(update={"phase": phase, **_OF_ONE_PHASE}))

    def done(self) -> None:
        """End the last phase, and show that the result has been written.

        Without that, the control plane finds the result when the attempt has ended.
        """
        self.enter("done")
        if self._here.is_leader:
            self._show_end()

    def failed(self, error: WorkerError) -> None:
        """Write failure.json: another attempt would not help, and why."""
        failure = Failure(reason=_reason(error), message=str(error))
        key = layout.run_failure(self._spec.job, self._spec.attempt)
        write_document(self._store, key, failure)
        self._show_end()

    def _show_end(self) -> None:
        """The last progress comes first: once a job has moved on, none is stored."""
        self._stop_heart()
        job, attempt = self._spec.job, self._spec.attempt
        self._stages.write(self._store, layout.run_stages(job, attempt))
        retry_unavailable(lambda: mark_ended(self._store, job, attempt))

    def rows_read(self, done: int, total: int) -> None:
        """Report rows read, at most every half second. Scaled up from this rank's rows."""
        if self.should_log():
            size, seconds = self._here.size, self._seconds_of_phase()
            self._report(
                self._snapshot(
                    rows_done=done * size,
                    rows_total=max(done, total) * size,
                    rows_per_second=done * size / seconds,
                    eta_seconds=max(total - done, 0) * seconds / max(done, 1),
                )
            )

    def resumed(self, updates: int) -> None:
        """See `Watcher`."""
        self._resumed_at = updates
        self._report(self._snapshot(updates_done=updates))

    def should_log(self) -> bool:
        """Whether progress is due, or this is the first update. Never on ranks that do not write."""
        age = time.monotonic() - self._reported_at
        is_first = self._phase == "training" and not self._progress.updates_done
        return self._here.is_leader and (is_first or age > _SECONDS_BETWEEN_WRITES)

    def update_done(self, update: UpdateDone) -> None:
        """Report updates that have statistics, and the last one."""
        if not self._here.is_leader or (update.stats is None and update.done < update.total):
            return
        seconds = self._seconds_of_phase()
        updates = update.done - (self._resumed_at or 0)
        assert 0 < update.done <= update.total
        assert updates >= 0, "it resumed after the update that it has done"
        self._report(
            self._snapshot(
                updates_done=update.done,
                updates_total=update.total,
                # The loss of the whole batch would need a collective. Shares are alike: scale up.
                loss=float(update.local_loss) * self._here.size,
                rows_per_second=updates * self._spec.spec.training.batch_size / seconds,
                eta_seconds=(update.total - update.done) * seconds / max(updates, 1),
                **(asdict(update.stats) if update.stats else {}),
            )
        )

    def _seconds_of_phase(self) -> float:
        return max(time.monotonic() - self._phase_began, 1e-9)

    def _snapshot(self, **fields: float | int | None) -> Progress:
        return Progress.model_validate(
            {
                "phase": self._phase,
                "ranks": self._here.size,
                "resumed_at": self._resumed_at,
                "at": datetime.now(UTC),
                **fields,
            }
        )

    def _report(self, progress: Progress) -> None:
        self._progress, self._reported_at = progress, time.monotonic()
        self._news.set()

    def _seconds_until(self, now: float) -> dict[Phase, float]:
        """Seconds of each phase, the present one included. The caller holds the lock of the clock."""
        assert self._clock.locked()
        if self._phase == "done":
            return self.seconds
        spent = self.seconds.get(self._phase, 0.0) + round(now - self._phase_began, 3)
        return {**self.seconds, self._phase: spent}

    def _stop_heart(self) -> None:
        """Write the latest progress once more, and no further one."""
        self._ended.set()
        self._news.set()
        if self._heart.is_alive():
            self._heart.join(_LAST_WRITE_SECONDS)

    def _beat(self) -> None:
        """Write whenever there is news or a heartbeat is due, and once more at the end."""
        is_last = False
        while not is_last:
            self._news.wait(self._heartbeat)
            is_last = self._ended.is_set()
            self._news.clear()
            self._write()

    def _write(self) -> None:
        """Write the latest progress with the current time."""
        with self._clock:
            now: dict[str, object] = {"at": datetime.now(UTC)}
            now["seconds"] = self._seconds_until(time.monotonic())
            if (answer := unavailable_because()) is not None:
                now["note"] = f"it waits for the object storage: {answer}"
            latest = self._progress.model_copy(update=now)
        try:
            self._writer.write(latest)
        except Exception as error:  # noqa: BLE001
            # An error of any kind must not end the thread whose heartbeat shows that training is alive.
            print(f"progress was not written: {error}", flush=True)


def _reason(error: WorkerError) -> AttemptFailureReason:
    match error:
        case InvalidDataset():
            return "invalid_dataset"
        case StoreDamaged():
            return "store_damaged"
        case CannotCombine():
            return "cannot_combine"
        case _:
            return "training_failed"
