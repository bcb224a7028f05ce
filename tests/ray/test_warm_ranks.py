"""Ranks that stay: the bits of cold ones, and an attempt survives the death of any process."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cmcl.demo.stream import read_stream
from cmcl.stack import LocalStack
from tests.conftest import EXAMPLE_STREAM
from workers.contract.dataset import DatasetManifest, ShardRef
from workers.contract.errors import ObjectNotFound
from workers.contract.job import JobSpec, Progress
from workers.contract.model import ModelSpec, TrainingSpec
from workers.contract.version import VersionManifest
from workers.storage import layout
from workers.storage.port import ObjectStore
from workers.storage.shards import fetch
from workers.storage.versions import check_candidate, read_candidate

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

STREAM = read_stream(EXAMPLE_STREAM)
QUICK = TrainingSpec(epochs=1)
# Long enough that a process can be killed while it trains.
PATIENT = TrainingSpec(epochs=150, learning_rate=1e-4)
SECONDS = 120.0


class Attempts:
    """Starts attempts as Ray would, each of a job of its own that learns a first version."""

    def __init__(self, stack: LocalStack, store: ObjectStore, folder: Path) -> None:
        self._stack, self._store, self._folder = stack, store, folder

    def start(
        self, job: str, dataset: int, training: TrainingSpec, *options: str
    ) -> subprocess.Popen[bytes]:
        """Begin the first attempt of a job on one of the example's datasets."""
        self._prepare(job, dataset, training)
        command = [
            *(sys.executable, "-m", "workers.train", "--store", self._store.uri),
            *("--job", job, "--attempt", "1", "--ranks", "2", *options),
        ]
        return self._stack.start_driver(command)

    def run(self, job: str, dataset: int, *options: str) -> VersionManifest:
        """The candidate that a whole attempt made."""
        assert self.start(job, dataset, QUICK, *options).wait(SECONDS) == 0
        return self.candidate(job)

    def candidate(self, job: str) -> VersionManifest:
        """Raises ObjectNotFound where there is none."""
        manifest = read_candidate(self._store, job, 1)
        check_candidate(self._store, manifest)
        return manifest

    def is_training(self, job: str) -> bool:
        """Whether some updates are done and some are not."""
        try:
            text = self._store.read(layout.run_progress(job, 1))
        except ObjectNotFound:
            return False
        progress = Progress.model_validate_json(text)
        return progress.phase == "training" and progress.updates_done > 0

    def _prepare(self, job: str, dataset: int, training: TrainingSpec) -> None:
        chosen = STREAM.datasets[dataset]
        shard = fetch(ShardRef(uri=chosen.train.as_uri()), self._folder / f"{job}.parquet")
        spec = JobSpec(
            job=job,
            attempt=1,
            model=job,
            version=1,
            parent=None,
            spec=ModelSpec(width=64, modalities=STREAM.modalities, training=training),
            dataset=DatasetManifest(
                dataset=job, model=job, name=chosen.name, pair=chosen.pair, shards=(shard,)
            ),
        )
        self._store.put(layout.run_spec(job, 1), spec.model_dump_json().encode())


@pytest.fixture
def attempts(stack: LocalStack, store: ObjectStore, tmp_path: Path) -> Attempts:
    return Attempts(stack, store, tmp_path)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def ray_processes(stack: LocalStack, name: str) -> list[psutil.Process]:
    """Processes of the stack's Ray by the name that Ray gives them."""
    children = psutil.Process(stack.processes["ray"].pid).children(recursive=True)
    return [child for child in children if name in title(child)]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_two_jobs_in_warm_ranks_make_the_bits_of_cold_ones(
    attempts: Attempts, stack: LocalStack
) -> None:
    first = attempts.run("warm-0", 0)
    ranks = {rank.pid for rank in ray_processes(stack, "RayTrainWorker")}
    second = attempts.run("warm-1", 1)
    assert {rank.pid for rank in ray_processes(stack, "RayTrainWorker")} == ranks
    assert len(ranks) == 2
    cold = [attempts.start(f"cold-{each}", each, QUICK, "--cold") for each in (0, 1)]
    assert [each.wait(SECONDS) for each in cold] == [0, 0]
    for warm, job in ((first, "cold-0"), (second, "cold-1")):
        assert warm.files == attempts.candidate(job).files
        assert warm.report.ranks == attempts.candidate(job).report.ranks == 2


@pytest.mark.parametrize("victim", ["RayTrainWorker", "ray::Resident"])
def test_attempt_survives_the_death_of_what_serves_it(
    attempts: Attempts, stack: LocalStack, victim: str
) -> None:
    job = f"orphan-{victim[-8:].lower()}"
    attempt = attempts.start(job, 1, PATIENT)
    wait_until(lambda: attempts.is_training(job))
    ray_processes(stack, victim)[-1].send_signal(signal.SIGKILL)
    assert attempt.wait(SECONDS) == 0
    assert attempts.candidate(job).report.ranks == 2


def test_attempt_that_is_stopped_makes_room_for_the_next(attempts: Attempts) -> None:
    attempt = attempts.start("stopped", 1, PATIENT)
    wait_until(lambda: attempts.is_training("stopped"))
    attempt.send_signal(signal.SIGTERM)
    assert attempt.wait(10) != 0
    attempts.run("after-stopped", 0)
    with pytest.raises(ObjectNotFound):
        attempts.candidate("stopped")


def test_data_that_cannot_be_learned_is_told_and_the_next_is(attempts: Attempts) -> None:
    wild = TrainingSpec(epochs=1, temperature=1e-40)
    assert attempts.start("wild", 0, wild).wait(SECONDS) == 1
    attempts.run("tame", 0)


def test_another_number_of_ranks_is_another_group(attempts: Attempts, stack: LocalStack) -> None:
    attempts.run("two-ranks", 0)
    assert attempts.run("one-rank", 0, "--ranks", "1").report.ranks == 1
    wait_until(lambda: not ray_processes(stack, "ray::Resident"))
    assert attempts.run("one-rank-warm", 0, "--ranks", "1").report.ranks == 1
    assert len(ray_processes(stack, "RayTrainWorker")) == 1
