"""One simulation: a database with its load, a cluster, replicas, and what is measured."""

import json
import math
import tempfile
import time as wall
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import func, or_, select

from benchmarks.command_line import log_progress
from benchmarks.fleet.database import PAIR, SPEC
from benchmarks.simulation import rows
from benchmarks.simulation.cluster import Cluster, Durations
from benchmarks.simulation.memory import MemoryStore
from benchmarks.simulation.ports import Costs, Statements
from benchmarks.simulation.replica import Machine, Replica, SharedParts, new_context, new_machine
from benchmarks.simulation.virtual_time import VirtualTime
from service.app import Parts, create_context
from service.database.queries import models, replicas
from service.database.rows import Event
from service.database.tables import attempts, jobs
from service.database.tables import models as model_rows
from service.datasets.intake import accept_dataset
from service.datasets.request import Intake, NewDataset
from service.jobs.driver import DriverLoop
from service.principal import EVERY_SCOPE, Principal
from service.settings import Settings
from service.states import JobState

_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of random name in it
# From the commit of an event to its notification in another replica.
_NOTIFICATION_SECONDS = 0.005
_BETWEEN_STARTS, _BETWEEN_SAMPLES = 0.3, 5.0
# How long to wait, after the end of the measurement, for candidates to become live.
_COOL_DOWN = 60.0
_NEWCOMER = "newcomer"


@dataclass(frozen=True)
class Setup:
    """What is simulated. The first `warm_up` seconds do not count: replicas start, and share the models.

    After them an owner without jobs posts `posted` datasets to as many models.
    """

    load: rows.Load = field(default_factory=rows.Load)
    replicas: int = 3
    seconds: float = 60.0
    warm_up: float = 30.0
    posted: int = 10
    seed: int = 0
    costs: Costs = field(default_factory=Costs)
    durations: Durations = field(default_factory=Durations)


class Simulation:
    """A control plane, its cluster, and the observation of both."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        self._setup = setup
        self._time = VirtualTime()
        memory = MemoryStore()
        self._cluster = Cluster(self._time, memory, setup.durations, setup.seed)
        settings = Settings(
            database_url=f"sqlite:///{folder / 'cmcl.db'}",
            store_uri=memory.uri,
            auth="off",
            allowed_prefixes=("s3://captures",),
            attempts_at_once=setup.load.running,
        )
        parts = Parts(store=memory, launcher=self._cluster, clock=self._time)
        self._template = create_context(settings, parts)
        self._fill()
        self._statements = Statements(self._template.database, self._time.task_name)
        # Connections from before have no counter.
        self._template.database.close()
        self._live_at: dict[tuple[str, int], float] = {}
        self._ages: list[float] = []
        self._depths: list[int] = []
        self._unowned: list[int] = []
        self._shared = SharedParts(
            time=self._time,
            template=self._template,
            memory=memory,
            cluster=self._cluster,
            statements=self._statements,
            costs=setup.costs,
            seed=setup.seed,
            see_live=self._see_live,
            announce=self._announce,
        )
        self._machines: list[Machine] = []
        self._replicas: list[Replica] = []

    def run(self) -> dict[str, Any]:
        """Run to the end; return the figures."""
        setup = self._setup
        for number in range(setup.replicas):
            self._time.after(number * _BETWEEN_STARTS, partial(self._start, f"r{number}"))
        self._run_until(setup.warm_up)
        before = self._counts()
        self._time.start("client", self._post)
        self._sample()
        self._run_until(setup.warm_up + setup.seconds)
        after = self._counts()
        figures = self._figures(before, after)
        self._time.run(self._time.seconds() + _COOL_DOWN, lambda: not self._not_live())
        figures |= self._latencies()
        return figures

    def close(self) -> None:
        """End all tasks, and close the database."""
        self._time.close()
        self._template.close()

    def _start(self, name: str) -> None:
        machine = new_machine(self._shared, name)
        context = new_context(self._shared, name, machine)
        replica = Replica(name, self._time, context, [DriverLoop(context)])
        self._machines.append(machine)
        self._replicas.append(replica)

    def _fill(self) -> None:
        load, now = self._setup.load, self._time()
        log_progress(f"writing {load.models} models with {load.queued} jobs")
        rows.fill(self._template.database, load, now)
        for model in load.running_models():
            self._cluster.begin_earlier(rows.first_spec(model))
        with self._template.database.write() as connection:
            for number in range(self._setup.posted):
                models.create(connection, f"{_NEWCOMER}-{number}", _NEWCOMER, SPEC, now)

    def _post(self) -> None:
        """Post the datasets of an owner without jobs, to the first replica."""
        context = self._replicas[0].context
        principal = Principal(_NEWCOMER, _NEWCOMER, EVERY_SCOPE)
        for number in range(self._setup.posted):
            request = NewDataset.model_validate(
                {
                    "model": f"{_NEWCOMER}-{number}",
                    "name": f"new-{number}",
                    "pair": PAIR.model_dump(),
                    "shards": [{"uri": f"s3://captures/new-{number}.parquet"}],
                }
            )
            intake = Intake.of(principal, self._time(), context.settings, request)
            with context.database.write() as connection:
                accept_dataset(connection, request, intake)

    def _run_until(self, end: float) -> None:
        """Run in pieces, with a line of progress for each."""
        began = wall.monotonic()
        while self._time.seconds() < end:
            self._time.run(min(end, self._time.seconds() + 2 * _BETWEEN_SAMPLES))
            log_progress(
                f"{self._time.seconds():6.0f} s of virtual time, {wall.monotonic() - began:.0f} s: "
                f"{len(self._live_at)} live, {self._depth()} keys wait"
            )

    def _announce(self, source: str, event: Event) -> None:
        for replica in self._replicas:
            if replica.name != source:
                self._time.after(_NOTIFICATION_SECONDS, partial(replica.notify, event.model))

    def _see_live(self, model: str, data: bytes) -> None:
        version = int(json.loads(data)["version"])
        self._live_at.setdefault((model, version), self._time.seconds())

    def _depth(self) -> int:
        return sum(replica.reconciler.queue.depth() for replica in self._replicas)

    def _sample(self) -> None:
        """Look at the database from outside, which is not counted, until the end of the measurement."""
        now = self._time()
        is_old = model_rows.c.owner != _NEWCOMER
        with self._template.database.read() as connection:
            progress = list(
                connection.execute(
                    select(jobs.c.progress["at"].as_string(), jobs.c.state_changed_at).where(
                        jobs.c.state == JobState.RUNNING
                    )
                )
            )
            owner = model_rows.c.lease_owner
            is_unowned = or_(owner.is_(None), owner.not_in(replicas.alive(connection, now)))
            unowned = select(func.count()).select_from(model_rows).where(is_unowned, is_old)
            self._unowned.append(connection.execute(unowned).scalar_one())
        for at, begun in progress:
            shown = begun if at is None else type(begun).fromisoformat(at)
            self._ages.append((now - shown).total_seconds())
        self._depths.append(self._depth())
        if self._time.seconds() + _BETWEEN_SAMPLES <= self._setup.warm_up + self._setup.seconds:
            self._time.after(_BETWEEN_SAMPLES, self._sample)

    def _counts(self) -> dict[str, Counter[str]]:
        """What was counted so far: by loop of the replicas, and of the calls."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for task, counts in self._statements.counts.items():
            loop = task.partition("/")[2]
            if loop:
                found[loop].update(counts)
        for replica, machine in zip(self._replicas, self._machines, strict=True):
            found["store"].update(machine.store.counts)
            found["launcher"].update(machine.launcher.counts)
            found["busy"][replica.name] += round(1e6 * machine.processor.busy)
            found["cpu"][replica.name] += round(1e6 * replica.cpu_seconds())
        return {name: Counter(counts) for name, counts in found.items()}

    def _figures(
        self, before: dict[str, Counter[str]], after: dict[str, Counter[str]]
    ) -> dict[str, Any]:
        setup, seconds = self._setup, self._setup.seconds
        counted = {name: counts - before.get(name, Counter()) for name, counts in after.items()}
        calls = {name: counted.pop(name) for name in ("store", "launcher", "busy", "cpu")}
        per_job_minute = 60 / seconds / setup.load.running
        total = sum(counted.values(), Counter[str]())
        return {
            "models": setup.load.models,
            "running": setup.load.running,
            "queued": setup.load.queued,
            "replicas": setup.replicas,
            "seconds": seconds,
            "seed": setup.seed,
            "progress_age_p99_s": quantile(self._ages, 0.99),
            "queue_depth_most": max(self._depths),
            "models_without_owner_most": max(self._unowned),
            "store_requests_per_job_minute": round(calls["store"].total() * per_job_minute, 3),
            "ray_requests_per_job_minute": round(calls["launcher"].total() * per_job_minute, 3),
            "statements_per_second": round(total["statements"] / seconds, 1),
            "rows_read_per_second": round(total["rows_read"] / seconds, 1),
            "rows_written_per_second": round(total["rows_written"] / seconds, 1),
            "by_loop": {loop: self._per_second(each) for loop, each in sorted(counted.items())},
            "cores_of_busiest": round(max(calls["busy"].values()) / 1e6 / seconds, 3),
            "measured_cores_of_busiest": round(max(calls["cpu"].values()) / 1e6 / seconds, 3),
            "owners": self._owners(),
            "newcomer": self._newcomer(),
        }

    def _per_second(self, counts: Counter[str]) -> dict[str, float]:
        """The load of a loop of all replicas together, and the cores that it takes by the costs."""
        seconds = self._setup.seconds
        found = {name: round(number / seconds, 2) for name, number in sorted(counts.items())}
        return {**found, "cores": round(self._setup.costs.processor(counts) / seconds, 4)}

    def _owners(self) -> dict[str, int]:
        """The least and the most running jobs of an owner with waiting jobs."""
        states = (JobState.SUBMITTING, JobState.RUNNING)
        query = (
            select(jobs.c.owner, func.count())
            .where(jobs.c.state.in_(states))
            .group_by(jobs.c.owner)
        )
        with self._template.database.read() as connection:
            running: dict[str, int] = dict(connection.execute(query).all())
        running.pop(_NEWCOMER, None)
        return {
            "number": len(running),
            "running_least": min(running.values()),
            "running_most": max(running.values()),
        }

    def _newcomer(self) -> dict[str, float | int | None]:
        """From the POST of a dataset of the owner without jobs to its attempt."""
        query = (
            select(jobs.c.created_at, attempts.c.created_at)
            .join(attempts, attempts.c.job == jobs.c.id)
            .where(jobs.c.owner == _NEWCOMER, attempts.c.number == 1)
        )
        with self._template.database.read() as connection:
            waits = [
                (begun - posted).total_seconds() for posted, begun in connection.execute(query)
            ]
        return {
            "posted": self._setup.posted,
            "begun": len(waits),
            "wait_p50_s": quantile(waits, 0.5),
            "wait_max_s": quantile(waits, 1.0),
        }

    def _measured(self) -> dict[tuple[str, int], float]:
        """The candidates of the measurement, and when each was complete."""
        began = self._setup.warm_up
        ended = began + self._setup.seconds
        return {
            version: at for version, at in self._cluster.candidates.items() if began <= at < ended
        }

    def _not_live(self) -> set[tuple[str, int]]:
        return self._measured().keys() - self._live_at.keys()

    def _latencies(self) -> dict[str, Any]:
        """Of candidates, the seconds until live.json named them. One that is not live counts as infinitely late."""
        measured = self._measured()
        late = [self._live_at.get(version, math.inf) - at for version, at in measured.items()]
        return {
            "candidates": len(measured),
            "not_live": len(self._not_live()),
            "candidate_to_live_p50_s": quantile(late, 0.5),
            "candidate_to_live_p99_s": quantile(late, 0.99),
        }


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return None without values, or if it is infinite: JSON has no infinity."""
    if not values:
        return None
    found = sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]
    return None if math.isinf(found) else round(found, 3)


def simulate(setup: Setup) -> dict[str, Any]:
    """Simulate in a folder of its own, in memory where there is one; return the figures."""
    began = wall.monotonic()
    folder = str(_MEMORY) if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=folder) as name:
        simulation = Simulation(setup, Path(name))
        try:
            figures = simulation.run()
        finally:
            simulation.close()
    return {**figures, "wall_s": round(wall.monotonic() - began, 1)}
