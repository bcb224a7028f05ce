"""The rounds that the work queue replaced: one thread visits each model and reads the objects of each running attempt.

As they were on 2026-11-29: for a running job, the size of its candidate's manifest, its progress, its state at the
launcher and its failure. All other steps are those of the product.
"""

import threading
from functools import partial

from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.job import Progress, submission_id
from cmcl.storage import layout
from service.context import Context
from service.database.queries import jobs, replicas
from service.database.queries.attempts import Report, RunningAttempt, store_progress
from service.database.rows import JobRecord, ModelRecord
from service.jobs.reconciler import Reconciler
from service.jobs.steps import run_step
from service.launchers.port import status_of
from service.states import JobState

# What CMCL_RECONCILE_SECONDS was.
_PAUSE_SECONDS = 0.2


class Rounds(Reconciler):
    """Visits every leased model in one thread, again and again."""

    def loop(self, stop: threading.Event) -> None:
        """Run rounds until `stop` is set."""
        woken = threading.Thread(target=self._woken, args=[stop])
        woken.start()
        while not stop.is_set():
            self.leases.renew()
            with self._context.database.read() as connection:
                names = replicas.leased(connection, self.replica)
            for name in names:
                self._visit(name)
                if stop.is_set():
                    break
            stop.wait(_PAUSE_SECONDS)
        woken.join()

    def _visit(self, name: str) -> None:
        if not self.queue.is_busy(name):
            self._advance(name)

    def _woken(self, stop: threading.Event) -> None:
        """Signals of the same process woke the rounds for their model."""
        while not stop.is_set():
            key = self.queue.get(0.1)
            if key is not None:
                self.queue.done(key)
                self._visit(key.model)

    def _step(self, job: JobRecord, model: ModelRecord) -> float | None:
        if job.state != JobState.RUNNING:
            return super()._step(job, model)
        run_step(self._context, job, job.state, partial(_watch, self._context, job))
        return None


def _watch(context: Context, job: JobRecord) -> None:
    try:
        context.store.size(layout.run_candidate(job.id, job.attempt))
    except ObjectNotFound:
        pass
    else:
        with context.database.write() as connection:
            jobs.move(connection, job, JobState.GATING, context.clock(), message=None)
        context.launcher.log(submission_id(job.id, job.attempt))
        return
    try:
        text = context.store.read(f"{layout.run_prefix(job.id, job.attempt)}/progress.json")
    except ObjectNotFound:
        pass
    else:
        progress = Progress.model_validate_json(text)
        if progress != job.progress:
            attempt = RunningAttempt(job.id, job.attempt, job.model, job.revision)
            with context.database.write() as connection:
                store_progress(connection, [Report(attempt, progress)], context.clock())
    status_of(context.launcher, submission_id(job.id, job.attempt))
    try:
        context.store.read(layout.run_failure(job.id, job.attempt))
    except ObjectNotFound:
        return
