"""Attempts on the session's local stack, requested as the control plane does."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from cmcl.contract.dataset import DatasetManifest, ShardRef
from cmcl.contract.job import (
    AttemptOutcome,
    AttemptRequest,
    JobSpec,
    Progress,
    submission_id,
)
from cmcl.contract.model import ModelSpec, TrainingSpec
from cmcl.contract.version import VersionManifest
from cmcl.demo.run import read_stream
from cmcl.stack import LocalStack
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import check_complete, read_candidate
from tests.conftest import EXAMPLE_STREAM
from tests.fakes.feature_shards import fetch
from tests.fakes.first_version import publish_first
from tests.fakes.running import newest_progress

STREAM = read_stream(EXAMPLE_STREAM)
QUICK = TrainingSpec(epochs=1)
_MODEL = "attempts"
# Everything takes seconds; this is for a machine that is ten times busier.
SECONDS = 600.0


class Attempts:
    """Requests attempts, each of a job of its own that trains the second version of one model on rows."""

    def __init__(self, stack: LocalStack, store: ObjectStore, folder: Path) -> None:
        self._stack, self._store, self._folder = stack, store, folder

    def request(self, job: str, dataset: int, training: TrainingSpec) -> None:
        """Request the first attempt of a job on one of the example's datasets."""
        self._prepare(job, dataset, training)
        request = AttemptRequest(
            job=job,
            attempt=1,
            owner="default",
            ranks=2,
            min_ranks=2,
            gpus_per_rank=0,
            idle_seconds=0,
        )
        key = layout.attempt_request(submission_id(job, 1))
        self._store.put(key, request.model_dump_json().encode())

    def withdraw(self, job: str) -> None:
        """Stop its attempt."""
        self._store.delete(layout.attempt_request(submission_id(job, 1)))

    def outcome(self, job: str) -> AttemptOutcome:
        """How its attempt has ended, which is waited for."""
        key = layout.attempt_outcome(submission_id(job, 1))
        wait_until(lambda: list(self._store.keys(key)))
        return read_document(self._store, key, AttemptOutcome)

    def start_cold(self, job: str, dataset: int, training: TrainingSpec) -> subprocess.Popen[bytes]:
        """Begin an attempt with two ranks of its own, as a RayJob does."""
        self._prepare(job, dataset, training)
        command = [
            *(sys.executable, "-m", "workers.train", "--store", self._store.uri),
            *("--job", job, "--attempt", "1", "--ranks", "2"),
        ]
        return self._stack.start_driver(command)

    def candidate(self, job: str) -> VersionManifest:
        """Raises ObjectNotFound where there is none."""
        manifest = read_candidate(self._store, job, 1)
        check_complete(self._store, manifest)
        return manifest

    def progress(self, job: str) -> Progress | None:
        """Progress of the attempt; None before the first."""
        return newest_progress(self._store, job, 1)

    def is_training(self, job: str) -> bool:
        """Whether some updates are done and some are not."""
        progress_now = self.progress(job)
        return (
            progress_now is not None
            and progress_now.phase == "training"
            and progress_now.updates_done > 0
        )

    def resumed_at(self, job: str) -> int | None:
        """The updates of the checkpoint that its ranks continued from; None if they began anew."""
        progress_now = self.progress(job)
        return None if progress_now is None else progress_now.resumed_at

    def checkpoints(self, job: str) -> list[str]:
        """Their keys, newest last."""
        return sorted(self._store.keys(layout.run_checkpoints(job, 1)))

    def _prepare(self, job: str, dataset: int, training: TrainingSpec) -> None:
        if not list(self._store.keys(layout.model_prefix(_MODEL))):
            publish_first(self._store, _spec(QUICK), self._dataset("first", 0))
        spec = JobSpec(
            job=job,
            attempt=1,
            model=_MODEL,
            version=2,
            parent=1,
            spec=_spec(training),
            dataset=self._dataset(job, dataset),
        )
        self._store.put(layout.run_spec(job, 1), spec.model_dump_json().encode())

    def _dataset(self, name: str, number: int) -> DatasetManifest:
        chosen = STREAM.datasets[number]
        shard = fetch(ShardRef(uri=chosen.train.as_uri()), self._folder / f"{name}.parquet")
        return DatasetManifest(
            dataset=name, model=_MODEL, name=chosen.name, pair=chosen.pair, shards=(shard,)
        )


def _spec(training: TrainingSpec) -> ModelSpec:
    return ModelSpec(width=64, modalities=STREAM.modalities, training=training, policy="preserve")


def ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a driver, which is waited for."""
    return process.wait(SECONDS)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def ray_processes(stack: LocalStack, name: str) -> list[psutil.Process]:
    """Processes of the stack's Ray by the name that Ray gives them."""
    children = psutil.Process(stack.processes["ray"].pid).children(recursive=True)
    return [child for child in children if name in title(child)]


def training_rank(stack: LocalStack) -> psutil.Process:
    """A rank of the attempt that is training; those that stay for another attempt do nothing."""
    before = {rank: rank.cpu_times().user for rank in ray_processes(stack, "RayTrainWorker")}
    time.sleep(0.5)
    return max(before, key=lambda rank: rank.cpu_times().user - before[rank])


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
