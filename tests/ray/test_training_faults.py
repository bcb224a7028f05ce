"""What is lost when something dies in the middle of a dataset: seconds, and no bit of the result."""

import signal
from pathlib import Path

import pytest
import torch

from benchmarks.faults.attempts import Job, Size
from benchmarks.faults.nodes import Nodes
from benchmarks.faults.scene import Scene
from cmcl.stack import LocalStack
from tests.ray.attempts import SECONDS, Attempts, ray_processes, wait_until
from workers.contract.model import TrainingSpec
from workers.storage.port import ObjectStore
from workers.storage.uris import open_store
from workers.train.job import train_dataset

pytestmark = pytest.mark.ray

# For some checkpoints, which the session's stack takes every second.
LONG_ENOUGH = TrainingSpec(epochs=60, learning_rate=1e-4)
SMALL = Size(rows=4096, epochs=25, batch_size=256, width=32)


def test_rank_that_dies_costs_no_bit_of_the_result(
    stack: LocalStack, store: ObjectStore, tmp_path: Path
) -> None:
    attempts = Attempts(stack, store, tmp_path)
    whole = attempts.start("whole", 1, LONG_ENOUGH)
    assert whole.wait(SECONDS) == 0
    broken = attempts.start("broken", 1, LONG_ENOUGH)
    wait_until(lambda: attempts.is_training("broken") and attempts.checkpoints("broken"))
    ray_processes(stack, "RayTrainWorker")[-1].send_signal(signal.SIGKILL)
    assert broken.wait(SECONDS) == 0
    told = attempts.progress("broken")
    assert told is not None
    assert told.resumed_at, "it went on from a checkpoint"
    assert attempts.candidate("broken").files == attempts.candidate("whole").files


def test_what_fails_alike_is_not_tried_again(
    stack: LocalStack, store: ObjectStore, tmp_path: Path
) -> None:
    attempts, started = Attempts(stack, store, tmp_path), "Started training worker group"
    before = stack.log("driver").read_text().count(started)
    wild = TrainingSpec(epochs=1, temperature=1e-40)
    assert attempts.start("wild-and-cold", 0, wild, "--cold").wait(SECONDS) == 1
    assert stack.log("driver").read_text().count(started) == before + 1


def test_job_that_loses_a_node_goes_on_with_fewer_ranks(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = open_store((tmp_path / "store").as_uri())
    elastic, alone = (Job(store, name, SMALL) for name in ("elastic", "alone"))
    for job in (elastic, alone):
        job.prepare(tmp_path)
    train_dataset(store.uri, "alone", 1, torch.device("cpu"))
    with Nodes(tmp_path / "ray", {"CMCL_CHECKPOINT_SECONDS": "1"}) as nodes:
        scene = Scene(nodes, elastic, (2, 1), None, seconds=180)
        scene.train_until(0.3)
        nodes.kill(nodes.node_of(nodes.ranks(scene.driver_log)[1]))
        scene.finish()
    result = elastic.result(scene.attempt)
    assert (scene.attempt, result.ranks) == (1, 1), "the same attempt, with the rank that is left"
    assert result.distance(alone.result(1)) < 1e-5
