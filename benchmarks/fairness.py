"""`python -m benchmarks.fairness`: how long the jobs of one owner wait beside another who has posted many datasets.

The scheduler, its queries and the choice of the preparation driver are the product's, on SQLite; what runs on the
cluster only takes time, and the time is virtual. So ten thousand datasets beside ten take seconds, and the result is
the same on every machine.
"""

import heapq
import json
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select

from benchmarks.command_line import OneLineParser, count
from benchmarks.control.backlog import BusyCluster
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import PrepareRequest
from service.app import Parts, create_context
from service.database.queries import job_queue, jobs, models, preparations
from service.database.queries.scheduling import PREPARATION, TRAINING
from service.database.rows import JobRecord
from service.database.tables import datasets as dataset_rows
from service.database.tables import jobs as job_rows
from service.jobs.scheduler import Scheduler, enter
from service.settings import Settings
from service.states import JobState
from workers.prepare.server import chosen

_BEGAN = datetime(2026, 11, 29, tzinfo=UTC)
_SPEC = ModelSpec(modalities={"image": 4, "text": 3})
# The other owner's datasets are in work when ours are posted.
_POSTED_AFTER = 60.0
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of random name in it


@dataclass(frozen=True)
class Load:
    """Datasets of an owner, evenly spread over models, all posted at `at` seconds."""

    owner: str
    datasets: int
    models: int
    at: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """What runs at once, and the mean seconds that each takes: from half to one and a half of them."""

    attempts: int
    preparations: int = 4
    prepare_seconds: float = 5.0
    train_seconds: float = 30.0
    seed: int = 0


@dataclass
class Waits:
    """Of one owner's jobs: seconds from the post to the end, and how many attempts of others began while one waited."""

    seconds: list[float] = field(default_factory=list)
    passed_by: list[int] = field(default_factory=list)

    def add(self, others: "Waits") -> None:
        """Add the waits of another simulation."""
        self.seconds += others.seconds
        self.passed_by += others.passed_by


class Simulation:
    """A control plane in a folder, and a cluster in virtual time."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self._cluster = cluster
        self._seconds, self._number = 0.0, 0
        settings = Settings(
            database_url=f"sqlite:///{folder / 'cmcl.db'}",
            store_uri=(folder / "store").as_uri(),
            auth="off",
            attempts_at_once=cluster.attempts,
        )
        parts = Parts(
            launcher=BusyCluster(),
            clock=lambda: _BEGAN + timedelta(seconds=self._seconds),
        )
        self._context = create_context(settings, parts)
        self._scheduler = Scheduler(self._context)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        # Models in the order in which they changed: the order of a set differs from process to process.
        self._changed: dict[str, None] = {}
        self._waiting: dict[str, JobRecord] = {}
        self._prepared: dict[str, JobRecord] = {}
        self._served: dict[str, None] = {}
        self._open: dict[str, set[str]] = defaultdict(set)
        # Owners of the attempts in the order in which they began, and how many had begun when a job began to wait.
        self._begun: list[str] = []
        self._entered: dict[str, int] = {}
        self.waits: dict[str, Waits] = defaultdict(Waits)

    def close(self) -> None:
        """Close the database."""
        self._context.close()

    def post(self, load: Load) -> None:
        """Post the datasets of an owner at their time."""
        names = [f"{load.owner}-{number}" for number in range(load.models)]
        with self._context.database.write() as connection:
            for name in names:
                models.create(connection, name, load.owner, _SPEC, self._context.clock())
        self._at(load.at, partial(self._post, load, names))

    def run_until_ended(self, owner: str) -> None:
        """Run until all datasets of the owner have ended."""
        while self._events and (self._open[owner] or owner not in self.waits):
            self._seconds, _, event = heapq.heappop(self._events)
            event()
            self._go_on()

    def _at(self, seconds: float, event: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (seconds, self._number, event))

    def _post(self, load: Load, names: list[str]) -> None:
        self.waits[load.owner] = Waits()
        rows = [_row(load, names, number, self._context.clock()) for number in range(load.datasets)]
        with self._context.database.write() as connection:
            connection.execute(insert(dataset_rows), [dataset for dataset, _ in rows])
            connection.execute(insert(job_rows), [job for _, job in rows])
        self._open[load.owner].update(str(job["id"]) for _, job in rows)
        self._changed.update(dict.fromkeys(names))

    def _go_on(self) -> None:
        """Do what the reconciler and the cluster do, until nothing changes at this time."""
        while self._changed:
            model = next(iter(self._changed))
            del self._changed[model]
            self._enter(model)
        self._scheduler.tick()
        self._take()
        self._prepare()

    def _enter(self, model: str) -> None:
        """Let the jobs of a model wait for the scheduler whose turn it is."""
        with self._context.database.read() as connection:
            seen = models.find(connection, model)
            turn = job_queue.current(connection, model)
            listed = preparations.to_prepare(connection, model)
        for job in [*listed, *([turn] if turn is not None else [])]:
            waits = job.state in (PREPARATION.waiting, TRAINING.waiting)
            if seen is not None and waits and job.eligible_at is None:
                self._entered[job.id] = len(self._begun)
                enter(self._context, job, seen.gate.priority)

    def _take(self) -> None:
        """Take over what was admitted: requests to prepare, and attempts."""
        states = (JobState.PREPARING, JobState.SUBMITTING)
        query = select(job_rows.c.id).where(job_rows.c.state.in_(states))
        with self._context.database.read() as connection:
            ids = list(connection.scalars(query.order_by(job_rows.c.sequence)))
            known = self._waiting.keys() | self._prepared.keys()
            found = [jobs.find(connection, job) for job in ids if job not in known]
        for job in found:
            if job is not None and job.state == JobState.SUBMITTING:
                self._train(job)
            elif job is not None:
                self._waiting[job.id] = job

    def _prepare(self) -> None:
        """Start preparations, as the driver chooses them."""
        waiting, running = map(_requests, (self._waiting, self._prepared))
        places = self._cluster.preparations
        for request in chosen(waiting, running, places, tuple(self._served)):
            job = self._waiting.pop(request.dataset)
            self._prepared[job.id] = job
            self._served.pop(job.owner, None)
            self._served[job.owner] = None
            self._later(self._cluster.prepare_seconds, job, partial(self._end_preparation, job))

    def _end_preparation(self, job: JobRecord) -> None:
        del self._prepared[job.id]
        with self._context.database.write() as connection:
            jobs.move(connection, job, JobState.PREPARED, self._context.clock())
        self._changed[job.model] = None

    def _train(self, job: JobRecord) -> None:
        entered = self._entered.pop(job.id)
        others = sum(owner != job.owner for owner in self._begun[entered:])
        self.waits[job.owner].passed_by.append(others)
        self._begun.append(job.owner)
        with self._context.database.write() as connection:
            jobs.move(connection, job, JobState.RUNNING, self._context.clock())
        self._later(self._cluster.train_seconds, job, partial(self._end_attempt, job))

    def _end_attempt(self, job: JobRecord) -> None:
        now = self._context.clock()
        with self._context.database.write() as connection:
            for state in (JobState.GATING, JobState.PUBLISHED):
                seen = jobs.find(connection, job.id)
                assert seen is not None
                ended = {"finished_at": now} if state == JobState.PUBLISHED else {}
                jobs.move(connection, seen, state, now, **ended)
        self.waits[job.owner].seconds.append((now - job.created_at).total_seconds())
        self._open[job.owner].discard(job.id)
        self._changed[job.model] = None

    def _later(self, mean: float, job: JobRecord, event: Callable[[], None]) -> None:
        """After a time that depends on the job alone, and not on what runs beside it."""
        drawn = random.Random(f"{self._cluster.seed} {job.id} {job.state}")  # noqa: S311 - durations
        self._at(self._seconds + mean * drawn.uniform(0.5, 1.5), event)


def _requests(known: dict[str, JobRecord]) -> list[PrepareRequest]:
    """What the driver's choice reads of requests."""
    read: list[dict[str, Any]] = [{"dataset": job.id, "owner": job.owner} for job in known.values()]
    return [PrepareRequest.model_construct(**fields) for fields in read]


def _row(
    load: Load, names: list[str], number: int, now: datetime
) -> tuple[dict[str, object], dict[str, object]]:
    """The rows of a dataset and of its job."""
    shared = {"owner": load.owner, "model": names[number % len(names)], "created_at": now}
    dataset = {
        **shared,
        "id": f"ds-{load.owner}-{number}",
        "name": f"data-{number}",
        "pair_first": "image",
        "pair_second": "text",
        "request": {"shards": []},
        "fingerprint": f"{load.owner}-{number}",
        "sealed_at": now,
    }
    job = {
        **shared,
        "id": f"job-{load.owner}-{number}",
        "kind": "learn",
        "dataset": dataset["id"],
        "dataset_name": dataset["name"],
        "dry_run": False,
        "state": JobState.QUEUED,
        "revision": 0,
        "attempt": 0,
        "attempts_before_retry": 0,
        "preparation": 0,
        "cancel_requested": False,
        "state_changed_at": now,
    }
    return dataset, job


def waits_of(load: Load, cluster: Cluster, beside: Load | None = None) -> Waits:
    """Simulate an owner's load, alone or beside another owner's, and return its waits."""
    folder = str(_MEMORY) if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=folder) as name:
        simulation = Simulation(Path(name), cluster)
        for each in (load, *([beside] if beside else [])):
            simulation.post(each)
        simulation.run_until_ended(load.owner)
        simulation.close()
    return simulation.waits[load.owner]


def fairness(queued: int = 10_000, datasets: int = 10, seeds: int = 3) -> list[dict[str, Any]]:
    """Compare the waits of an owner with `datasets` alone and beside one with `queued`, over `seeds` of the durations.

    One row for each number of attempts at once, and of models among which the owner spreads the datasets.
    """
    rows = []
    for attempts, spread in ((1, 1), (4, datasets)):
        load = Load("small", datasets, spread, _POSTED_AFTER)
        alone, beside = Waits(), Waits()
        for seed in range(seeds):
            cluster = Cluster(attempts, seed=seed)
            alone.add(waits_of(load, cluster))
            beside.add(waits_of(load, cluster, Load("large", queued, 20)))
        medians = [statistics.median(waits.seconds) for waits in (alone, beside)]
        rows.append(
            {
                "attempts_at_once": attempts,
                "models": spread,
                "queued_of_another": queued,
                "alone_p50_s": round(medians[0], 1),
                "beside_p50_s": round(medians[1], 1),
                "ratio": round(medians[1] / medians[0], 2),
                "passed_by_most": max(beside.passed_by),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each case, and with --json the document as the last line."""
    parser = OneLineParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.add_argument(
        "--queued", type=count, default=10_000, help="datasets of the other owner (10000)"
    )
    parser.add_argument(
        "--datasets", type=count, default=10, help="datasets whose wait is measured (10)"
    )
    parser.add_argument("--seeds", type=count, default=3, help="simulations of each case (3)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document as the last line"
    )
    options = parser.parse_args(arguments)
    rows = fairness(options.queued, options.datasets, options.seeds)
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    if options.json:
        print(json.dumps({"cases": rows}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
