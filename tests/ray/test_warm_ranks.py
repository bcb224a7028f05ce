"""Ranks that stay: the bits of cold ones, and an attempt survives the death of any process."""

import signal
from pathlib import Path

import pytest

from cmcl.stack import LocalStack
from tests.ray.attempts import PATIENT, QUICK, SECONDS, Attempts, ray_processes, wait_until
from workers.contract.errors import ObjectNotFound
from workers.contract.model import TrainingSpec
from workers.storage.port import ObjectStore

pytestmark = pytest.mark.ray


@pytest.fixture
def attempts(stack: LocalStack, store: ObjectStore, tmp_path: Path) -> Attempts:
    return Attempts(stack, store, tmp_path)


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


def test_another_number_of_ranks_is_another_group_which_leaves_when_idle(
    attempts: Attempts, stack: LocalStack
) -> None:
    attempts.run("two-ranks", 0)
    assert attempts.run("one-rank", 0, "--ranks", "1").report.ranks == 1
    wait_until(lambda: not ray_processes(stack, "ray::Resident"))
    alone = ("--ranks", "1", "--idle-seconds", "5")
    assert attempts.run("one-rank-warm", 0, *alone).report.ranks == 1
    assert len(ray_processes(stack, "RayTrainWorker")) == 1
    # Nothing comes for five seconds: all that the group held is free.
    wait_until(lambda: not ray_processes(stack, "RayTrainWorker"))
    assert not ray_processes(stack, "ray::Resident")
