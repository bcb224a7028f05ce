"""Warm ranks give the same bits as cold ones after any crash, and release resources for the next attempt."""

import signal
from pathlib import Path

import pytest

from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.job import AttemptOutcome
from cmcl.contract.model import TrainingSpec
from cmcl.stack import LocalStack
from cmcl.storage.object_store import ObjectStore
from tests.ray.attempts import QUICK, Attempts, ended, ray_processes, wait_until

pytestmark = pytest.mark.ray

# For some checkpoints, of which the session's stack takes five a second.
LONG = TrainingSpec(epochs=30, learning_rate=1e-4)
# Longer than it takes to stop it.
VERY_LONG = TrainingSpec(epochs=1000, learning_rate=1e-4)
WILD = TrainingSpec(epochs=1, temperature=1e-40)
SUCCEEDED = AttemptOutcome(state="succeeded")


@pytest.fixture
def attempts(stack: LocalStack, store: ObjectStore, tmp_path: Path) -> Attempts:
    return Attempts(stack, store, tmp_path)


def ranks(stack: LocalStack) -> set[int]:
    """Process numbers of all ranks of all groups."""
    return {rank.pid for rank in ray_processes(stack, "RayTrainWorker")}


def test_warm_ranks_give_the_bits_of_cold_ranks_after_any_death_and_an_earlier_attempt(
    attempts: Attempts, stack: LocalStack
) -> None:
    attempts.request("broken", 1, LONG)
    wait_until(lambda: attempts.is_training("broken") and attempts.checkpoints("broken"))
    # The driver replaces its pool, and the service its driver. The death of a rank is one of tests/e2e/test_main_job.py.
    killed = ray_processes(stack, "ray::PoolActor")[-1]
    killed.send_signal(signal.SIGKILL)
    wait_until(lambda: {*ray_processes(stack, "ray::PoolActor")} - {killed})
    ray_processes(stack, "-m workers.driver --store")[-1].send_signal(signal.SIGKILL)
    # Asked while it runs: the service removes what an ended attempt shows.
    wait_until(lambda: attempts.resumed_at("broken"))
    cold = attempts.start_cold("cold", 1, LONG)
    assert (attempts.outcome("broken"), ended(cold)) == (SUCCEEDED, 0)

    attempts.request("before", 0, QUICK)
    assert attempts.outcome("before") == SUCCEEDED
    wait_until(lambda: len(ranks(stack)) == 2)
    stayed = ranks(stack)
    attempts.request("again", 1, LONG)
    assert attempts.outcome("again") == SUCCEEDED
    assert ranks(stack) == stayed

    for job in ("broken", "again"):
        assert attempts.candidate(job).files == attempts.candidate("cold").files
        assert attempts.candidate(job).report.ranks == 2


def test_a_failed_attempt_is_reported_and_a_stopped_one_frees_its_resources(
    attempts: Attempts,
) -> None:
    attempts.request("wild", 0, WILD)
    failed = attempts.outcome("wild")
    assert failed.state == "failed"
    assert "diverged" in failed.message
    attempts.request("stopped", 1, VERY_LONG)
    wait_until(lambda: attempts.is_training("stopped"))
    attempts.withdraw("stopped")
    attempts.request("after", 0, QUICK)
    assert attempts.outcome("after") == SUCCEEDED
    for job in ("wild", "stopped"):
        with pytest.raises(ObjectNotFound):
            attempts.candidate(job)
