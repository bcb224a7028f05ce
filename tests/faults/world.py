"""The world around the replicas of a control plane: database, store, cluster, clock and users.

Made from a template, because migrating a database takes longer than a job.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from sqlalchemy import Connection

from cmcl.contract.errors import ObjectExists
from cmcl.contract.job import Failure, JobSpec, VersionRef
from cmcl.contract.model import Gate
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.local import LocalStore
from cmcl.storage.running import mark_ended
from cmcl.storage.versions import write_blob
from service.context import Context
from service.core.errors import Rejected
from service.core.principal import LOCAL
from service.database.engine import Database, Seek, open_database
from service.database.queries import jobs
from service.database.rows import BranchPoint, JobRow
from service.datasets.intake import Intake, NewDataset, accept_dataset
from service.jobs import transitions
from service.jobs.transitions import ActorNote
from service.launchers.port import LaunchState
from service.registry import promotion
from service.registry.combining import request_merge, request_unlearning
from service.registry.models import Limits, branch, set_gate
from service.registry.promotion import PromotionRequest
from tests.fakes.clock import ScriptedClock
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table
from tests.fakes.preparer import prepare_all
from tests.fakes.trainer import evaluate, leave_checkpoint, report_progress, train
from tests.faults.cluster import Cluster

MODEL = "scenes"
GOOD_SHARDS = 6
LIMITS = Limits(500, 1 << 30)
BAD = "bad"
# Short, so that a run of some hundred seconds reaches each of them.
DEADLINES: dict[str, Any] = {
    "lease_seconds": 6,
    "prepare_deadline_seconds": 90,
    "queue_deadline_seconds": 60,
    "start_deadline_seconds": 40,
    "run_deadline_seconds": 300,
    "heartbeat_deadline_seconds": 20,
    "lost_attempt_grace_seconds": 6,
}


@dataclass(frozen=True)
class Template:
    """A control plane with one model and nothing else, and shards to post."""

    context: Context
    database: Path
    shards: dict[str, dict[str, str]]


def make_template(folder: Path, **settings: Any) -> Template:
    """Migrate once; each world copies the result."""
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


@cache
def database_of(process: str, url: str) -> Database:
    """The database as that process opens it. Kept for all scenarios, for its compiled statements."""
    return open_database(url)


class PreparingStore(LocalStore):
    """A local store with a driver: each request is carried out at once, unless it `is_away`."""

    is_away = False

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        if key.startswith(layout.preparations()) and not self.is_away:
            prepare_all(self)


class World:
    """The world of one scenario, in an emptied folder.

    `woken`: jobs that a user took out of a final state since the last check. `skew_seconds`: by how much the clocks of
    two replicas differ.
    """

    def __init__(
        self,
        template: Template,
        folder: Path,
        database_url: str | None = None,
        clock: ScriptedClock | None = None,
    ) -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        if database_url is None:
            database_url = _copied(template.database, folder)
        self.database_url = database_url
        self.template = template
        self.store = PreparingStore(folder / "store")
        self.clock = clock or ScriptedClock()
        self.cluster = Cluster(self.clock)
        self.skew_seconds = 0.0
        self.woken: set[str] = set()
        self.bad_jobs: set[str] = set()
        self.checkpoints: list[str] = []
        self.database = database_of("world", database_url)
        self.settings = template.context.settings
        self._posted = 0
        self._once: set[str] = set()

    def once(self, what: str) -> bool:
        """Whether this is the first call with this name."""
        is_first = not self.was(what)
        self._once.add(what)
        return is_first

    def was(self, what: str) -> bool:
        """Whether `once` was called with this name."""
        return what in self._once

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def context(self, database: Database) -> Context:
        """Create the parts of another replica, with empty memory."""
        return replace(
            self.template.context,
            database=database,
            store=self.store,
            launcher=self.cluster,
            clock=self.clock,
        )

    # What users do. None or False: it was rejected with a message.

    def post(self, shard: str, model: str = MODEL, **flags: bool) -> str | None:
        """A dataset with that one shard; its job, also where the dataset was there already."""
        self._posted += 1
        request = NewDataset.model_validate(
            {
                "model": model,
                "name": f"data-{self._posted}",
                "pair": {"first": "image", "second": "text"},
                "shards": [self.template.shards[shard]],
                **flags,
            }
        )
        intake = Intake.of(LOCAL, self.clock(), self.settings, request)
        accepted = self.database.settle(lambda c: accept_dataset(c, request, intake))
        if accepted.job is not None and shard == BAD:
            self.bad_jobs.add(accepted.job.id)
        return accepted.job.id if accepted.job else None

    def cancel(self, job: str) -> bool:
        return self._may(lambda c: transitions.cancel(c, job, self._note()))

    def retry(self, job: str) -> bool:
        return self._wake(job, lambda c: transitions.retry(c, job, self._note()))

    def approve(self, job: str) -> bool:
        return self._wake(job, lambda c: transitions.approve(c, job, self._note()))

    def reject(self, job: str) -> bool:
        return self._may(lambda c: transitions.reject(c, job, self._note()))

    def promote(self, version: int) -> bool:
        return self._may(lambda c: promotion.choose(c, MODEL, version, self._promotion_request()))

    def roll_back(self) -> bool:
        return self._may(lambda c: promotion.roll_back(c, MODEL, self._promotion_request()))

    def set_gate(self, gate: Gate) -> bool:
        return self._may(lambda c: set_gate(c, MODEL, gate, LOCAL, self.clock(), None))

    def branch(self, name: str, version: int) -> bool:
        point = BranchPoint(MODEL, version)
        return self._may(lambda c: branch(c, name, point, LOCAL, self.clock(), LIMITS))

    def unlearn(self, dataset: str | None) -> bool:
        return self._may(lambda c: request_unlearning(c, dataset or "", None, LOCAL, self.clock()))

    def merge(self, name: str, version: int) -> bool:
        """Merge a version of the model into another one."""
        ref = VersionRef(model=MODEL, version=version)
        return self._may(lambda c: request_merge(c, name, ref, LOCAL, self.clock()))

    # What happens on the cluster.

    def prepare(self) -> None:
        """The driver is back, and does what was asked for."""
        self.store.is_away = False
        prepare_all(self.store)

    def serve(self) -> None:
        """Carry out the requests to prepare, and run what is on the cluster."""
        self.prepare()
        for attempt in list(self.cluster.alive):
            state = self.cluster.word(attempt)
            if state == LaunchState.RUNNING:
                self.complete(attempt, LaunchState.SUCCEEDED)
            elif state == LaunchState.PENDING:
                self.start(attempt)

    def start(self, attempt: str) -> None:
        """Start the attempt and report it as running."""
        self.cluster.claim(attempt, LaunchState.RUNNING)
        report_progress(self.store, *_parts(attempt), "starting")

    def progress(self, attempt: str, updates: int) -> None:
        """Report progress."""
        report_progress(self.store, *_parts(attempt), "training", updates)

    def checkpoint(self, attempt: str, updates: int) -> None:
        """Write a checkpoint."""
        self.checkpoints.append(leave_checkpoint(self.store, *_parts(attempt), updates))

    def spec_of(self, job: JobRow) -> JobSpec:
        """The spec of the job's present attempt."""
        return read_document(self.store, layout.run_spec(job.id, job.attempt), JobSpec)

    def complete(self, attempt: str, says: LaunchState, drift: float = 0.1) -> None:
        """Write the candidate, or the result of an evaluation, and end; `says` is the state that the head reports."""
        job, number = _parts(attempt)
        spec = read_document(self.store, layout.run_spec(job, number), JobSpec)
        try:
            if spec.kind == "evaluate":
                evaluate(self.store, job, number)
            else:
                train(self.store, job, number, drift)
        except ObjectExists:
            # A second process of the same attempt, after the head had lost the record of the first one.
            pass
        self.cluster.die(attempt, says)

    def give_up(self, attempt: str) -> None:
        """Write a permanent failure report."""
        failure = Failure(reason="training_failed", message="diverged")
        key = layout.run_failure(*_parts(attempt))
        self.store.put(key, failure.model_dump_json().encode())
        mark_ended(self.store, *_parts(attempt))
        self.cluster.die(attempt, LaunchState.FAILED)

    def leave_half(self, attempt: str) -> None:
        """Die while writing: some files, and no manifest."""
        write_blob(self.store, b"half of it")
        self.cluster.die(attempt, LaunchState.FAILED, "killed")

    def jobs(self) -> list[JobRow]:
        """All jobs, in order of arrival."""
        with self.database.read() as connection:
            return jobs.page(connection, {}, Seek(limit=1000))

    def job(self, job: str) -> JobRow:
        """One of them."""
        with self.database.read() as connection:
            found = jobs.find(connection, job)
        assert found is not None
        return found

    def _may(self, work: Callable[[Connection], object]) -> bool:
        try:
            with self.database.write() as connection:
                work(connection)
        except Rejected:
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
