"""Decides which waiting jobs start when there is room. A waiting job is a row and not a process.

Jobs wait at two stages, for their preparation and for their attempt. When there is room at a stage, the owner with the
fewest running jobs there is served first, and of several the one that was served least recently; of an owner's jobs, the
first in the order of `service.database.queries.job_queue`. So a job of an owner without running jobs waits for at most
one job of each other owner.

An admission is one transaction, which locks the stage: it counts what runs, and moves jobs of any model, whichever
instance holds its lease. That instance submits the attempt, or writes the request, in its next step. If it dies in
between, the job is in the state `submitting`, which any instance continues.
"""

import heapq
import math
import threading
from collections.abc import Iterator
from functools import partial

from sqlalchemy import Connection

from cmcl.contract.api.jobs import JobState
from cmcl.contract.methods import Priority
from service.context import Context
from service.core.errors import DatabaseUnavailable, WriteConflict
from service.core.loops import PeriodicLoop
from service.core.settings import Settings
from service.database.queries import job_queue, jobs, models
from service.database.queries.job_queue import PREPARATION, TRAINING, Stage
from service.database.rows import Event, JobRow
from service.launchers.port import ClusterResources, LauncherError

# Memory of the processes that start a group of ranks, and of a rank with Ray Train's helpers: see decision 9.
_GROUP_BYTES = _RANK_BYTES = 700 << 20
# With the kuberay launcher and without Kueue.
_RAYJOBS_AT_ONCE = 16
# Changes in other instances are found after this long.
_SECONDS_BETWEEN_ROUNDS = 1.0
_COUNTED_AHEAD = 1000
_WAITS = "waiting: other jobs run"
_STAGES = {stage.waiting: stage for stage in (PREPARATION, TRAINING)}


class Scheduler(PeriodicLoop):
    """Admits waiting jobs when others end. Each instance runs it."""

    name = "scheduler"
    outages = (DatabaseUnavailable, WriteConflict)
    outage_message = "waiting jobs are not admitted; will retry"
    # Jobs that end together are counted once.
    pause_seconds = 0.02

    def __init__(self, context: Context, job_changed: threading.Event | None = None) -> None:
        """`job_changed` is set when a job changes in this process: there may be room for another one."""
        super().__init__()
        self._context = context
        self._job_changed = job_changed or threading.Event()
        context.database.subscribe(self._wake)

    def step(self, stop: threading.Event) -> float:
        self._job_changed.wait(_SECONDS_BETWEEN_ROUNDS)
        self._job_changed.clear()
        self.tick()
        return self.pause_seconds

    def _wake(self, event: Event) -> None:
        if event.job is not None:
            self._job_changed.set()

    def tick(self) -> None:
        """Admit what there is room for. Locks nothing if no job waits or there is no room."""
        for stage in _STAGES.values():
            limit = limit_of(self._context, stage)
            with self._context.database.read() as connection:
                if not job_queue.is_any_waiting(connection, stage):
                    continue
                room = limit - sum(job_queue.running(connection, stage).values())
            if room > 0:
                self._context.database.settle(partial(self._admit, stage, limit))

    def _admit(self, stage: Stage, limit: float, connection: Connection) -> None:
        newest = job_queue.lock(connection, stage)
        _Admission(self._context, connection, stage, newest).fill(limit)


def enter(context: Context, job: JobRow, priority: Priority) -> None:
    """Let a job wait for its next stage, and admit it at once if there is room and it is first."""
    assert job.eligible_at is None, "it would lose its place"
    stage = _STAGES[job.state]
    limit = limit_of(context, stage)
    # A job whose attempt was lost is repeated before the owner's other jobs.
    is_repeated = stage is TRAINING and job.attempt > job.attempts_before_retry
    since = job.created_at if is_repeated else context.clock()

    def change(connection: Connection) -> None:
        newest = job_queue.lock(connection, stage)
        # Models are locked before their jobs.
        models.lock(connection, job.model)
        if jobs.enqueue(connection, job, since, priority, _WAITS):
            _Admission(context, connection, stage, newest).fill(limit)

    context.database.settle(change)


class _Admission:
    """One transaction that admits jobs at a locked stage. `newest`: number of the newest admission."""

    def __init__(self, context: Context, connection: Connection, stage: Stage, newest: int) -> None:
        self._context = context
        self._connection = connection
        self._stage = stage
        self._newest = newest

    def fill(self, limit: float) -> None:
        """Admit jobs until `limit` run, or none is left that may."""
        running = job_queue.running(self._connection, self._stage)
        room = limit - sum(running.values())
        if room <= 0:
            return
        served = job_queue.waiting_owners(self._connection, self._stage)
        assert max(served.values(), default=0) <= self._newest
        queue = [rank for owner in served for rank in self._rank(owner, running, served)]
        heapq.heapify(queue)
        while room > 0 and queue:
            owner = heapq.heappop(queue)[-1]
            job = job_queue.first(self._connection, self._stage, owner)
            if job is None:
                continue
            if self._start(job):
                assert job.owner == owner
                room -= 1
                self._newest += 1
                assert served[owner] < self._newest, "admissions are numbered upwards"
                running[owner] = running.get(owner, 0) + 1
                assert running[owner] <= owner_limit(self._context.settings, self._stage, owner)
                served[owner] = self._newest
                job_queue.set_served(self._connection, self._stage, owner, self._newest)
            else:
                jobs.dequeue(self._connection, job)
            for rank in self._rank(owner, running, served):
                heapq.heappush(queue, rank)
            assert len(queue) <= len(served), "an owner has two places"

    def _rank(
        self, owner: str, running: dict[str, int], served: dict[str, int]
    ) -> Iterator[tuple[bool, int, int, str]]:
        """The owner's place among the others, lowest first; nothing if it runs as many jobs as it may."""
        most = owner_limit(self._context.settings, self._stage, owner)
        number = running.get(owner, 0)
        if number < most:
            yield (not self._goes_first(owner), number, served[owner], owner)

    def _goes_first(self, owner: str) -> bool:
        """Whether the operator has granted the owner that its high priority counts among all owners, and its next job
        has it.
        """
        if not self._context.settings.grant(owner).high_priority:
            return False
        job = job_queue.first(self._connection, self._stage, owner)
        model = None if job is None else models.find(self._connection, job.model)
        return model is not None and model.gate.priority == "high"

    def _start(self, job: JobRow) -> bool:
        """Move the job on. False if it is not its turn among the jobs of its model."""
        now = self._context.clock()
        if self._stage is PREPARATION:
            return jobs.move(
                self._connection,
                job,
                JobState.PREPARING,
                now,
                preparation=job.preparation + 1,
                prepare_progress=None,
                **jobs.NO_ATTEMPT,
            )
        # Locked: two jobs of a model that begin concurrently would not see each other.
        model = models.lock(self._connection, job.model)
        if model is None:
            return False
        parent = model.live_version if job.kind == "evaluate" else model.head or None
        return job_queue.start_attempt(self._connection, job, parent, now)


def limit_of(context: Context, stage: Stage) -> float:
    """How many jobs may run at a stage; infinite if unlimited."""
    settings = context.settings
    if stage is PREPARATION:
        return context.tuning.preparations_at_once
    if settings.attempts_at_once is not None:
        return settings.attempts_at_once or math.inf
    if settings.launcher == "kuberay":
        return math.inf if settings.kuberay_queue else _RAYJOBS_AT_ONCE
    try:
        resources = context.launcher.resources()
    except LauncherError:
        # Until the cluster responds.
        return 1
    return math.inf if resources is None else attempts_that_fit(settings, resources)


def attempts_that_fit(settings: Settings, cluster: ClusterResources) -> int:
    """How many attempts a cluster has CPUs, GPUs and memory for, at least 1."""
    bounds = [
        cluster.cpus / settings.ranks,
        cluster.memory_bytes / (_GROUP_BYTES + settings.ranks * _RANK_BYTES),
    ]
    if settings.gpus_per_rank:
        bounds.append(cluster.gpus / (settings.ranks * settings.gpus_per_rank))
    return max(1, math.floor(min(bounds)))


def owner_limit(settings: Settings, stage: Stage, owner: str) -> float:
    """How many jobs of an owner may run at a stage; infinite if unlimited."""
    most = settings.limit(owner, "running_jobs") if stage is TRAINING else None
    return math.inf if most is None else most


def why_it_waits(context: Context, job: JobRow) -> str | None:
    """What a job that waits for the scheduler waits for, and its position; None for another job."""
    if job.eligible_at is None:
        return None
    stage = _STAGES[job.state]
    with context.database.read() as connection:
        running = job_queue.running(connection, stage)
        ahead = job_queue.ahead(connection, stage, job, _COUNTED_AHEAD)
    own, most = running.get(job.owner, 0), owner_limit(context.settings, stage, job.owner)
    total, limit = sum(running.values()), limit_of(context, stage)
    what = "are prepared" if stage is PREPARATION else "run"
    if own >= most:
        why = f"{own} jobs of this owner {what}, the limit is {most}"
    elif total >= limit:
        why = f"{total} jobs {what}, {own} of them of this owner; the limit is {limit}"
    else:
        why = "it is about to start"
    number = f"{ahead} or more" if ahead == _COUNTED_AHEAD else str(ahead)
    return f"waiting: {why}. Before it wait {number} jobs of this owner"
