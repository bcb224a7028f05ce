"""The world around the replicas of a control plane: database, store, cluster, clock and users.

Made from a template, because to migrate a database takes longer than the life of a job.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from sqlalchemy import Connection

from cmcl.contract.errors import ObjectExists
from cmcl.contract.job import Failure, JobSpec
from cmcl.contract.policy import GatePolicy
from cmcl.contract.rollout import CanaryPlan, RolloutRule
from service.context import Context
from service.database.engine import Database, open_database
from service.database.queries import jobs
from service.database.rows import BranchPoint, JobRecord
from service.datasets.addresses import Intake
from service.datasets.intake import accept_dataset
from service.datasets.request import NewDataset
from service.datasets.validations import Validations
from service.errors import Refused
from service.jobs import actions
from service.jobs.actions import ActorNote
from service.jobs.workqueue import WakeSignal
from service.launchers.port import LaunchState
from service.principal import LOCAL
from service.registry import canary, promotion
from service.registry.models import Limits, branch, set_policy
from service.registry.promotion_request import PromotionRequest
from tests.fakes.clock import ScriptedClock
from tests.fakes.control_plane import ControlPlane
from tests.fakes.executor import InlineExecutor
from tests.fakes.feature_shards import feature_table
from tests.fakes.trainer import leave_checkpoint, report_progress, train
from tests.faults.cluster import Cluster
from workers.storage import layout
from workers.storage.local import LocalStore

MODEL = "scenes"
GOOD_SHARDS = 6
LIMITS = Limits(500, 1 << 30)
BAD = "bad"
# Short, so that a story of some hundred seconds meets each of them.
DEADLINES = {
    "lease_seconds": 6,
    "queue_deadline_seconds": 60,
    "start_deadline_seconds": 40,
    "run_deadline_seconds": 300,
    "heartbeat_deadline_seconds": 20,
    "lost_attempt_grace_seconds": 6,
}
# By how much a replica's clock may be wrong.
SKEW_SECONDS = 3
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Template:
    """A control plane with one model and nothing else, and shards to post."""

    context: Context
    database: Path
    shards: dict[str, dict[str, str]]


def make_template(folder: Path, **settings: object) -> Template:
    """Migrated once; each world copies it."""
    plane = ControlPlane(folder, **DEADLINES, **settings)
    plane.create_model(MODEL)
    shards = {f"good-{number}": plane.shard(f"good-{number}") for number in range(GOOD_SHARDS)}
    shards[BAD] = plane.shard(BAD, _with_a_hole(feature_table(16, prefix=BAD)))
    plane.close()
    return Template(plane.context, folder / "cmcl.db", shards)


def _with_a_hole(table: pa.Table) -> pa.Table:
    column = table.column("feature_a").combine_chunks()
    values = np.array(column.flatten(), dtype=np.float32)
    values[5] = np.nan
    width = column.type.list_size
    broken = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
    return table.set_column(table.schema.get_field_index("feature_a"), "feature_a", broken)


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """In memory where there is such a disk: what is flushed thousands of times stays quick."""
    with TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        yield Path(folder)


@cache
def database_of(process: str, url: str) -> Database:
    """As that process opens it. Kept for all stories, because its compiled statements are as well."""
    return open_database(url)


class World:
    """One story; what an earlier one left in the folder is removed. `woken`: jobs that a user took out of a final state since the last look."""

    def __init__(self, template: Template, folder: Path, database_url: str | None = None) -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        if database_url is None:
            database_url = _copied(template.database, folder)
        self.database_url = database_url
        self.template = template
        self.store = LocalStore(folder / "store")
        self.clock = ScriptedClock()
        self.cluster = Cluster(self.clock)
        self.woken: set[str] = set()
        self.bad_jobs: set[str] = set()
        self.checkpoints: list[str] = []
        self.database = database_of("world", database_url)
        self.settings = template.context.settings
        self._names = itertools.count(1)
        self._once: set[str] = set()

    def once(self, what: str) -> bool:
        """Whether it is asked for the first time."""
        is_first = not self.was(what)
        self._once.add(what)
        return is_first

    def was(self, what: str) -> bool:
        """Whether it was asked for already."""
        return what in self._once

    def close(self) -> None:
        """Give the database back."""
        self.database.close()

    def context(self, database: Database) -> Context:
        """The parts of one more replica, which has nothing in memory."""
        return replace(
            self.template.context,
            database=database,
            store=self.store,
            launcher=self.cluster,
            validations=Validations(InlineExecutor(), lambda: None),
            threads=InlineExecutor(),
            wake_signal=WakeSignal(),
            clock=self.clock,
        )

    # What users do. None or False: it was rejected with a message.

    def post(self, shard: str) -> str | None:
        """A dataset with that one shard; its job, also where the dataset was there already."""
        request = NewDataset.model_validate(
            {
                "model": MODEL,
                "name": f"data-{next(self._names)}",
                "pair": {"first": "image", "second": "text"},
                "shards": [self.template.shards[shard]],
            }
        )
        intake = Intake.of(LOCAL, self.clock(), self.settings.allowed_prefixes, request)
        accepted = self.database.settle(lambda c: accept_dataset(c, request, intake))
        if accepted.job is not None and shard == BAD:
            self.bad_jobs.add(accepted.job.id)
        return accepted.job.id if accepted.job else None

    def cancel(self, job: str) -> bool:
        return self._may(lambda c: actions.cancel(c, job, self._note()))

    def retry(self, job: str) -> bool:
        return self._wake(job, lambda c: actions.retry(c, job, self._note()))

    def approve(self, job: str) -> bool:
        return self._wake(job, lambda c: actions.approve(c, job, self._note()))

    def reject(self, job: str) -> bool:
        return self._may(lambda c: actions.reject(c, job, self._note()))

    def promote(self, version: int) -> bool:
        return self._may(lambda c: promotion.choose(c, MODEL, version, self._promotion_request()))

    def roll_back(self) -> bool:
        return self._may(lambda c: promotion.roll_back(c, MODEL, self._promotion_request()))

    def put_on_trial(self, version: int, rule: RolloutRule) -> bool:
        plan = CanaryPlan(share=0.1, rule=rule)
        return self._may(
            lambda c: canary.set_canary(c, MODEL, version, plan, self._promotion_request())
        )

    def set_policy(self, policy: GatePolicy) -> bool:
        return self._may(lambda c: set_policy(c, MODEL, policy, LOCAL, self.clock(), None))

    def branch(self, name: str, version: int) -> bool:
        point = BranchPoint(MODEL, version)
        return self._may(lambda c: branch(c, name, point, LOCAL, self.clock(), LIMITS))

    # What happens on the cluster.

    def start(self, attempt: str) -> None:
        """It runs, and reports it."""
        self.cluster.claim(attempt, LaunchState.RUNNING)
        report_progress(self.store, *_parts(attempt), "starting")

    def progress(self, attempt: str, updates: int) -> None:
        """It makes progress."""
        report_progress(self.store, *_parts(attempt), "training", updates)

    def checkpoint(self, attempt: str, updates: int) -> None:
        """It saves what it has learned so far."""
        self.checkpoints.append(leave_checkpoint(self.store, *_parts(attempt), updates))

    def spec_of(self, job: JobRecord) -> JobSpec:
        """The spec of the job's present attempt."""
        return JobSpec.model_validate_json(self.store.read(layout.run_spec(job.id, job.attempt)))

    def complete(self, attempt: str, says: LaunchState, drift: float = 0.1) -> None:
        """It leaves its candidate and ends; `says` is what becomes known of it."""
        try:
            train(self.store, *_parts(attempt), drift)
        except ObjectExists:
            # A second process of the same attempt, after the head had lost the record of the first one.
            pass
        self.cluster.die(attempt, says)

    def give_up(self, attempt: str) -> None:
        """It leaves word that another attempt would fail alike."""
        failure = Failure(reason="training_failed", message="diverged")
        key = layout.run_failure(*_parts(attempt))
        self.store.put(key, failure.model_dump_json().encode())
        self.cluster.die(attempt, LaunchState.FAILED)

    def leave_half(self, attempt: str) -> None:
        """It dies while it writes: some files, and no manifest."""
        self.store.put(layout.run_file(*_parts(attempt), layout.HEADS), b"half of it")
        self.cluster.die(attempt, LaunchState.FAILED, "killed")

    def jobs(self) -> list[JobRecord]:
        """All of them, in the order of their arrival."""
        with self.database.read() as connection:
            return jobs.page(connection, {}, None, 1000)

    def job(self, job: str) -> JobRecord:
        """One of them."""
        with self.database.read() as connection:
            found = jobs.find(connection, job)
        assert found is not None
        return found

    def _may(self, work: Callable[[Connection], object]) -> bool:
        try:
            with self.database.write() as connection:
                work(connection)
        except Refused:
            return False
        return True

    def _wake(self, job: str, work: Callable[[Connection], object]) -> bool:
        done = self._may(work)
        if done:
            self.woken.add(job)
        return done

    def _note(self) -> ActorNote:
        return ActorNote(LOCAL, self.clock(), "on purpose")

    def _promotion_request(self) -> PromotionRequest:
        return PromotionRequest(LOCAL, "on purpose", self.clock())


def _copied(database: Path, folder: Path) -> str:
    for left in folder.glob("cmcl.db*"):
        left.unlink()
    shutil.copyfile(database, folder / "cmcl.db")
    return f"sqlite:///{folder / 'cmcl.db'}"


def _parts(attempt: str) -> tuple[str, int]:
    """Job and number of a submission id."""
    job, _, number = attempt.rpartition("-a")
    return job, int(number)
