"""A branch is merged, and its dataset unlearned, by ranks of the running stack.

Pages of docs run the command line (test_journeys.py).
"""

from pathlib import Path

import pytest

from cmcl.client import Client
from cmcl.contract.api.jobs import JobState
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from tests.fakes.feature_shards import feature_table, write_shard
from tests.ray.attempts import wait_until

pytestmark = pytest.mark.ray

# Solved within a second.
SPEC = ModelSpec(
    width=8, modalities={"image": 4, "text": 3}, lift=0, training=TrainingSpec(batch_size=8)
)
PAIR = ModalityPair(first="image", second="text")
SECONDS = 600.0


def test_a_branch_is_merged_and_its_dataset_unlearned(client: Client, tmp_path: Path) -> None:
    def published(job: str, model: str) -> list[str]:
        """Names of the datasets of the version that a job makes."""
        ended = client.watch(job, timeout=SECONDS)
        assert ended.state == JobState.PUBLISHED, ended
        number = ended.version
        assert number is not None
        # Until then it is neither branched nor merged.
        wait_until(lambda: client.version(model, number).stored_at)
        return [line.name for line in client.version(model, number).lineage]

    def add(name: str, model: str) -> list[str]:
        # Equal features would be one dataset, whatever their ids.
        table = feature_table(200, prefix=name, seed=len(name))
        shard = write_shard(tmp_path / f"{name}.parquet", table)
        return published(client.add_dataset(model, name, PAIR, [shard]).job.id, model)

    client.create_model("shapes", SPEC)
    assert add("fashion", "shapes") == ["fashion"]
    client.branch_model("shapes", 1, "shapes-north")
    assert add("digits", "shapes-north") == ["fashion", "digits"]
    merge = client.merge_model("shapes", "shapes-north@2")
    assert published(merge.id, "shapes") == ["fashion", "digits"]
    dataset = client.version("shapes", 2).lineage[1].dataset
    unlearning = client.unlearn_dataset(dataset, "shapes")
    assert published(unlearning.id, "shapes") == ["fashion"]
    unlearned = client.version("shapes", 3).manifest.unlearned
    assert unlearned is not None
    assert unlearned.name == "digits"
