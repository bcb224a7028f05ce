"""Warm ranks give the same bits as cold ones after any crash, and release resources for the next attempt."""

import signal
from pathlib import Path

import pytest

from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.model import TrainingSpec
from cmcl.stack import LocalStack
from tests.ray.attempts import QUICK, Attempts, ended, ray_processes, training_rank, wait_until
from workers.storage.object_store import ObjectStore

pytestmark = pytest.mark.ray

# For some checkpoints, of which the session's stack takes five a second.
LONG = TrainingSpec(epochs=30, learning_rate=1e-4)
# Longer than it takes to stop it.
VERY_LONG = TrainingSpec(epochs=1000, learning_rate=1e-4)
WILD = TrainingSpec(epochs=1, temperature=1e-40)
ALONE = ("--ranks", "1")
# A message of Ray Train, which reaches the driver's output some time later.
_GROUP_OF_ONE = "Started training worker group of size 1:"


@pytest.fixture
def attempts(stack: LocalStack, store: ObjectStore, tmp_path: Path) -> Attempts:
    return Attempts(stack, store, tmp_path)


def ranks(stack: LocalStack) -> set[int]:
    """Process numbers of all ranks of all groups."""
    return {rank.pid for rank in ray_processes(stack, "RayTrainWorker")}


def test_warm_ranks_give_the_bits_of_cold_ranks_after_a_kill_an_earlier_attempt_and_from_a_remote_driver(
    attempts: Attempts, stack: LocalStack, tmp_path: Path
) -> None:
    broken = attempts.start("broken", 1, LONG)
    wait_until(lambda: attempts.is_training("broken") and attempts.checkpoints("broken"))
    training_rank(stack).send_signal(signal.SIGKILL)
    cold = attempts.start("cold", 1, LONG, "--cold")
    # Asked while it runs: the service removes what an ended attempt shows.
    wait_until(lambda: attempts.has_resumed("broken"))
    assert [ended(each) for each in (broken, cold)] == [0, 0]

    assert ended(attempts.start("before", 0, QUICK)) == 0
    stayed = ranks(stack)
    assert len(stayed) == 2
    # The resident's socket lies in the folder for temporary files, and here is another one: as on
    # another node it is asked through Ray.
    assert ended(attempts.start("again", 1, LONG, temporary=tmp_path)) == 0
    assert ranks(stack) == stayed

    for job in ("broken", "again"):
        assert attempts.candidate(job).files == attempts.candidate("cold").files
        assert attempts.candidate(job).report.ranks == 2


def test_a_failed_attempt_is_reported_and_a_stopped_one_frees_its_resources(
    attempts: Attempts,
) -> None:
    assert ended(attempts.start("wild", 0, WILD)) == 1
    stopped = attempts.start("stopped", 1, VERY_LONG)
    wait_until(lambda: attempts.is_training("stopped"))
    stopped.send_signal(signal.SIGTERM)
    assert ended(stopped) != 0
    assert ended(attempts.start("after", 0, QUICK)) == 0
    for job in ("wild", "stopped"):
        with pytest.raises(ObjectNotFound):
            attempts.candidate(job)


def test_another_number_of_ranks_is_another_group_and_what_fails_alike_is_not_tried_again_there(
    attempts: Attempts, stack: LocalStack
) -> None:
    def driver_log() -> str:
        return stack.log("driver").read_text()

    assert ended(attempts.start("two", 0, QUICK)) == 0
    wait_until(lambda: len(ranks(stack)) == 2)
    before = driver_log().count(_GROUP_OF_ONE)
    assert ended(attempts.start("wild-alone", 0, WILD, *ALONE)) == 1
    wait_until(lambda: driver_log().count(_GROUP_OF_ONE) > before)
    assert driver_log().count(_GROUP_OF_ONE) == before + 1
    assert "CMCL_RANKS is 2 in the pool and 1 for this attempt" in driver_log()
    # The group of two makes room: all that it held is free.
    wait_until(lambda: not ray_processes(stack, "ray::PoolActor") and not ranks(stack))


def test_attempt_survives_the_death_of_the_pool_server(
    attempts: Attempts, stack: LocalStack
) -> None:
    orphan = attempts.start("orphan", 1, LONG, *ALONE)
    wait_until(lambda: attempts.is_training("orphan"))
    ray_processes(stack, "ray::PoolActor")[-1].send_signal(signal.SIGKILL)
    assert ended(orphan) == 0
    assert attempts.candidate("orphan").report.ranks == 1
