"""When a node dies during training, time is lost and the result is the same."""

from pathlib import Path

import pytest
import torch

from benchmarks.faults.attempts import Job, Size
from benchmarks.faults.nodes import Nodes
from benchmarks.faults.trial import Trial
from cmcl.storage.uris import open_store
from workers.train.job import train_dataset

SMALL = Size(rows=4096, epochs=25, batch_size=256, width=32)
SECONDS = 800


@pytest.mark.ray
def test_a_job_that_loses_a_node_continues_with_fewer_ranks(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = open_store((tmp_path / "store").as_uri())
    elastic, alone = (Job(store, name, SMALL) for name in ("elastic", "alone"))
    for job in (elastic, alone):
        job.prepare(tmp_path)
    train_dataset(store.uri, "alone", 1, torch.device("cpu"))
    # A node counts as lost when five checks have failed, by default one in 3 s.
    often = {"CMCL_CHECKPOINT_SECONDS": "1", "RAY_health_check_period_ms": "500"}
    with Nodes(tmp_path / "ray", often, cpus_of_head=1, others=("127.0.0.2",)) as nodes:
        trial = Trial(nodes, elastic, (2, 1), None, SECONDS)
        trial.train_until(0.3)
        nodes.kill("127.0.0.2")
        trial.finish()
    result = elastic.result(trial.attempt)
    assert (trial.attempt, result.ranks) == (1, 1), "the same attempt, with the rank that is left"
    assert result.distance(alone.result(1)) < 1e-5
