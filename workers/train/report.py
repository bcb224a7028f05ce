"""What a job tells while it runs (progress.json), and how long each phase took."""

import time
from datetime import UTC, datetime

from workers.contract.errors import InvalidDataset, StorageUnavailable, WorkerError
from workers.contract.job import Failure, JobSpec, Phase, Progress
from workers.storage.layout import run_failure, run_progress
from workers.storage.port import ObjectStore
from workers.train.distributed import World
from workers.train.learn import Watcher
from workers.train.loop import UpdateDone

# An object store charges for every write; people do not read faster than this.
_SECONDS_BETWEEN_WRITES = 0.5


class Reporter(Watcher):
    """Keeps the seconds of each phase; the leading rank also writes progress for all to see."""

    def __init__(self, store: ObjectStore, spec: JobSpec, here: World) -> None:
        self._store, self._spec, self._here = store, spec, here
        self.seconds: dict[str, float] = {}
        self._phase: Phase = "starting"
        self._phase_began = self._last_write = time.monotonic()
        self._progress = self._snapshot()

    def enter(self, phase: Phase) -> None:
        """End the current phase and begin the next one."""
        now = time.monotonic()
        spent = now - self._phase_began
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + round(spent, 3)
        self._phase, self._phase_began = phase, now
        self._progress = self._progress.model_copy(update={"phase": phase, "at": datetime.now(UTC)})
        self._write()

    def update_done(self, update: UpdateDone) -> None:
        """Told after every update; writes now and then and after the last one."""
        now = time.monotonic()
        is_last = update.done == update.total
        if not self._here.leads or not (
            is_last or now - self._last_write > _SECONDS_BETWEEN_WRITES
        ):
            return
        batch = self._spec.spec.training.batch_size
        # The loss of the whole batch would cost a collective: ranks draw alike, so scale ours up.
        loss = float(update.local_loss) * self._here.size
        rate = update.done * batch / max(now - self._phase_began, 1e-9)
        self._progress = self._snapshot(update.done, update.total, loss, rate)
        self._write()

    def _snapshot(
        self,
        done: int = 0,
        total: int = 0,
        loss: float | None = None,
        rate: float | None = None,
    ) -> Progress:
        return Progress(
            phase=self._phase,
            updates_done=done,
            updates_total=total,
            loss=loss,
            rows_per_second=rate,
            at=datetime.now(UTC),
        )

    def _write(self) -> None:
        if not self._here.leads:
            return
        self._last_write = time.monotonic()
        key = run_progress(self._spec.job, self._spec.attempt)
        try:
            self._store.put(key, self._progress.model_dump_json().encode())
        except StorageUnavailable as error:
            # Progress is for people; a store that is slow to answer must not end the training.
            print(f"progress was not written: {error}", flush=True)


def leave_failure(store: ObjectStore, spec: JobSpec, error: WorkerError) -> None:
    """Tell the control plane, in the user's words, that another attempt would not help."""
    failure = Failure(
        reason="invalid_dataset" if isinstance(error, InvalidDataset) else "training_failed",
        message=str(error),
    )
    key = run_failure(spec.job, spec.attempt)
    store.put(key, failure.model_dump_json().encode())
