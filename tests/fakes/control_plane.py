"""A whole control plane in a folder: real database, real store, real API; the cluster is a fake."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pyarrow as pa
from pydantic_settings import PydanticBaseSettingsSource

from cmcl.contract.api.jobs import FINAL_STATES, JobState
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import read_live
from service.app import Parts, create_app
from service.context import Context, Tuning
from service.core.settings import Settings
from service.database.engine import open_database
from service.database.migrations import upgrade
from service.database.queries import datasets, jobs, models, versions
from service.database.rows import DatasetRow, JobRow, ModelRow, VersionRow
from service.jobs.reconciler import Reconciler
from service.maintenance.backup import BackupWriter
from service.telemetry.spans import Spans
from tests.fakes.app_client import AppClient
from tests.fakes.clock import ScriptedClock
from tests.fakes.crashes import CrashingDatabase, CrashingLauncher, CrashingStore, FaultAtMoment
from tests.fakes.feature_shards import feature_table, write_shard
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.launcher import FakeLauncher
from tests.fakes.preparer import prepare_all
from tests.fakes.rounds import run_round
from tests.fakes.trainer import evaluate, train

SPEC = {
    "width": 8,
    "modalities": {"image": 4, "text": 3, "audio": 4},
    "training": {"batch_size": 8},
}


class _GivenSettings(Settings):
    """Settings without the environment: looking up a hundred fields there takes a fifth of a control plane's start."""

    @classmethod
    def settings_customise_sources(  # type: ignore[override]
        cls, *_: Any, init_settings: PydanticBaseSettingsSource, **__: Any
    ) -> tuple[PydanticBaseSettingsSource]:
        return (init_settings,)


@cache
def newest_tables() -> bytes:
    """A migrated SQLite database without rows: migrating takes longer than most tests."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cmcl.db"
        database = open_database(f"sqlite:///{path}")
        upgrade(database)
        database.close()
        return path.read_bytes()


def open_databases(folder: Path) -> list[str]:
    """Files of SQLite databases in the folder that this process has open."""
    paths = [file.path for file in psutil.Process().open_files()]
    return [path for path in paths if Path(path).match(f"{folder.resolve()}/cmcl.db*")]


class ControlPlane:
    """A control plane. A second one on the same folder is the same one after a restart."""

    def __init__(
        self,
        folder: Path,
        launcher: FakeLauncher | None = None,
        clock: ScriptedClock | None = None,
        spans: Spans | None = None,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.shards = folder / "shards"
        self.store = FlakyStore(LocalStore(folder / "store"))
        # Prepares datasets whose request is there after a round; it reads the disk, so faults of the store do not affect it.
        self.preparer: Callable[[ObjectStore], None] = prepare_all
        self._cluster_store = LocalStore(folder / "store")
        self.launcher = launcher or FakeLauncher()
        self.clock = clock or ScriptedClock()
        values = {
            "database_url": f"sqlite:///{folder / 'cmcl.db'}",
            "store_uri": self.store.uri,
            "allowed_prefixes": (self.shards.resolve().as_uri(),),
            "auth": "off",
            **settings,
        }
        # A tick takes a second: the next replica finds the models free.
        tuned = {"lease_seconds": 1, "lost_attempt_grace_seconds": 0}
        tuned |= {
            each.name: values.pop(each.name) for each in fields(Tuning) if each.name in values
        }
        database = folder / "cmcl.db"
        if "database_url" not in settings and not database.exists():
            folder.mkdir(parents=True, exist_ok=True)
            database.write_bytes(newest_tables())
        parts = Parts(self.store, self.launcher, self.clock, spans, Tuning(**tuned))
        self.app = create_app(_GivenSettings.model_validate(values), parts)
        self.context: Context = self.app.state.context
        self.reconciler: Reconciler = self.app.state.reconciler
        self.client = AppClient(self.app)

    def close(self) -> None:
        """Close the database."""
        self.context.database.close()

    def create_model(self, name: str = "scenes", **changes: Any) -> None:
        """A model with small features."""
        response = self.client.post("/v1/models", json={"name": name, **SPEC, **changes})
        assert response.status_code == 201, response.text

    def shard(self, name: str, table: pa.Table | None = None) -> dict[str, str]:
        """A shard in the permitted folder, as a request names it."""
        table = feature_table(16, prefix=name) if table is None else table
        return {"uri": write_shard(self.shards / f"{name}.parquet", table).uri}

    def dataset_body(self, name: str, model: str = "scenes", **changes: Any) -> dict[str, object]:
        """The body of a POST for a dataset with one good shard."""
        return {
            "model": model,
            "name": name,
            "pair": {"first": "image", "second": "text"},
            "shards": [self.shard(f"{model}-{name}")],
            **changes,
        }

    def post_dataset(self, name: str = "one", model: str = "scenes", **changes: Any) -> str:
        """Post a valid dataset and return the id of its job."""
        body = self.dataset_body(name, model, **changes)
        response = self.client.post("/v1/datasets", json=body)
        assert response.status_code == 202, response.text
        job: str = response.json()["job"]["id"]
        return job

    def record(self) -> None:
        """Write the outstanding backup records to object storage."""
        writer = BackupWriter(self.context)
        assert writer.round()
        writer.release()

    def tick(self, times: int = 1) -> None:
        """Run rounds of the reconciler, with a second between them."""
        for _ in range(times):
            run_round(self.reconciler)
            self.preparer(self._cluster_store)
            self.clock.advance(1)

    def tick_to(self, job: str, state: JobState) -> JobRow:
        """Run rounds until the job is in that state."""
        for _ in range(20):
            if self.job(job).state == state:
                return self.job(job)
            self.tick()
        raise AssertionError(f"{job} did not come to {state}: {self.job(job)}")

    def run_to_end(self, job: str, drift: float = 0.1) -> JobRow:
        """Train every submission until the job is final, and its version stored, and its pointer written."""
        for _ in range(40):
            found = self.job(job)
            if found.state in FINAL_STATES:
                self.tick(3)
                return found
            if found.state == JobState.RUNNING and found.kind == "evaluate":
                evaluate(self.store, job, found.attempt)
            elif found.state == JobState.RUNNING and not self.has_candidate(found):
                train(self.store, job, found.attempt, drift)
            self.tick()
        raise AssertionError(f"{job} did not end: {self.job(job)}")

    def has_candidate(self, job: JobRow) -> bool:
        """Whether the current attempt has written a candidate."""
        return any(self.store.keys(layout.run_candidate(job.id, job.attempt)))

    def job(self, job: str) -> JobRow:
        """The row."""
        with self.context.database.read() as connection:
            found = jobs.find(connection, job)
        assert found is not None
        return found

    def dataset_of(self, job: str) -> DatasetRow:
        """The row of the job's dataset."""
        with self.context.database.read() as connection:
            found = datasets.find(connection, str(self.job(job).dataset))
        assert found is not None
        return found

    def model(self, name: str = "scenes") -> ModelRow:
        """The row."""
        with self.context.database.read() as connection:
            found = models.find(connection, name)
        assert found is not None
        return found

    def answering(self, model: str = "scenes") -> tuple[int, int] | None:
        """Generation and version that live.json shows."""
        pointer = read_live(self.store, model)
        return None if pointer is None else (pointer.generation, pointer.version)

    def versions(self, model: str = "scenes") -> list[VersionRow]:
        """The rows."""
        with self.context.database.read() as connection:
            return versions.page(connection, model, None, 100)

    def crashing_reconciler(self, lifeline: FaultAtMoment) -> Reconciler:
        """A reconciler of another process, which dies when the fault injector raises."""
        mortal = replace(
            self.context,
            database=CrashingDatabase(self.context.database, lifeline),
            store=CrashingStore(self.store, lifeline),
            launcher=CrashingLauncher(self.launcher, lifeline),
        )
        return Reconciler(mortal)


@contextmanager
def reopened(folder: Path, copy: Path) -> Iterator[ControlPlane]:
    """The closed control plane of a folder, in a copy and an hour later: copying is faster than publishing."""
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    plane = ControlPlane(copy)
    plane.clock.advance(3600)
    yield plane
    plane.close()
