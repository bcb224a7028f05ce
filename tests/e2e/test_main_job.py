"""The whole pipeline on the real example stream, with crashes, under queries.

The tests of this module go through one stream in order: each is one more dataset of the same model.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cmcl.client import Client, CmclError, Json
from cmcl.contract.model import ModelSpec, TrainingSpec
from cmcl.demo.queries import QueryLoad
from cmcl.demo.stream import Stream, StreamDataset, read_stream
from cmcl.stack import LocalStack
from tests.conftest import EXAMPLE_STREAM
from tests.ray.attempts import training_rank, wait_until
from workers.model.artifact import load_heads
from workers.model.heads import ModalityHeads, initial_heads
from workers.storage import layout
from workers.storage.object_store import ObjectStore
from workers.storage.uris import open_store
from workers.storage.versions import read_version, read_version_file

pytestmark = pytest.mark.ray

MODEL = "e2e"
# Long enough that a process can be killed while it trains.
LONG_TRAINING: dict[str, Any] = {
    "training": TrainingSpec(epochs=50, learning_rate=1e-4),
    "policy": "preserve",
}
# Everything takes seconds; this is for a machine that is ten times busier.
SECONDS = 600.0


@pytest.fixture(scope="module")
def stream() -> Stream:
    return read_stream(EXAMPLE_STREAM)


@pytest.fixture(scope="module")
def load(stack: LocalStack, stream: Stream) -> Iterator[QueryLoad]:
    """Send 50 queries a second, from the first version to the end of the module."""
    load = QueryLoad(
        "127.0.0.1", stack.ports.embeddings, MODEL, stream.probe_rows(2, datasets=1), rate=50
    )
    yield load
    load.stop()


def post(client: Client, model: str, dataset: StreamDataset) -> str:
    accepted = client.add_dataset(
        model, dataset.name, dataset.pair, dataset.shards, dataset.evaluation_shards
    )
    return str(accepted["job"]["id"])


def is_training(client: Client, job: str) -> bool:
    progress: Json = client.job(job)["progress"] or {}
    return progress.get("phase") == "training" and progress["updates_done"] > 0


def heads_of(store: ObjectStore, version: int, model: str = MODEL) -> ModalityHeads:
    manifest = read_version(store, model, version)
    return load_heads(read_version_file(store, manifest, layout.HEADS), manifest.spec)


def test_first_dataset_becomes_the_first_version(
    client: Client, stream: Stream, load: QueryLoad, stack: LocalStack
) -> None:
    client.create_model(MODEL, ModelSpec(modalities=stream.modalities))
    ended = client.watch(post(client, MODEL, stream.datasets[0]), timeout=SECONDS)
    assert (ended["state"], ended["version"], ended["attempt"]) == ("published", 1, 1)
    assert [attempt.outcome for attempt in client.attempts(ended.id)] == ["candidate"]
    assert client.progress(ended.id).points
    assert "Running entrypoint" in client.log(ended.id).text
    manifest = client.version(MODEL, 1)
    assert manifest.report.ranks == 2
    assert manifest.report.evaluation[str(manifest.dataset)].at_1 > 0.8
    features = stream.probe_rows(1)["image"]
    wait_until(lambda: answers(client, features))
    load.start()


def answers(client: Client, features: list[list[float]]) -> bool:
    try:
        return client.embed(MODEL, "image", features).version == 1
    except CmclError:
        return False


def test_two_ranks_on_ray_make_the_version_of_one_process(
    stack: LocalStack, store: ObjectStore, tmp_path: Path
) -> None:
    command = [
        *(sys.executable, "-m", "workers.train.rerun", "--method", "nullspace"),
        *("--store", stack.store_uri, "--model", MODEL, "--version", "1"),
        *("--into", tmp_path.as_uri()),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    # Moments of two ranks are those of one to rounding, which the polish amplifies, and which may turn
    # all heads alike: so scores are compared, and not weights.
    ours, alone = (scores_of(each) for each in (store, open_store(tmp_path.as_uri())))
    torch.testing.assert_close(ours, alone, rtol=0, atol=5e-3)


def scores_of(store: ObjectStore) -> torch.Tensor:
    """Cosines of random features of the two modalities that version 1 has learned."""
    spec, heads = read_version(store, MODEL, 1).spec, heads_of(store, 1)
    start, random = initial_heads(spec).weights, torch.Generator().manual_seed(0)
    first_NE, second_NE = (
        heads.embed(name, torch.randn(64, width, generator=random))
        for name, width in sorted(spec.widths.items())
        if not torch.equal(heads.weights[name], start[name])
    )
    return first_NE @ second_NE.mT


def test_killed_rank_and_killed_control_plane_still_give_exactly_one_version(
    client: Client, stack: LocalStack, stream: Stream, store: ObjectStore
) -> None:
    """The ranks begin again from a checkpoint while no control plane runs; the next one adopts their attempt."""
    client.create_model("survivor", ModelSpec(modalities=stream.modalities, **LONG_TRAINING))
    job = post(client, "survivor", stream.datasets[1])
    wait_until(
        lambda: is_training(client, job) and list(store.keys(layout.run_checkpoints(job, 1)))
    )
    training_rank(stack).send_signal(signal.SIGKILL)
    stack.kill("service")
    with pytest.raises(CmclError, match="cannot connect to"):
        client.job(job)
    stack.start_service()
    stack.wait_for_service()
    ended = client.watch(job, timeout=SECONDS)
    assert (ended["state"], ended["attempt"]) == ("published", 1)
    assert ended["progress"]["resumed_at"], "the ranks began again, from a checkpoint"
    assert [version["version"] for version in client.versions("survivor")] == [1]
    assert client.version("survivor", 1).report.ranks == 2


def test_second_version_protects_the_first_and_queries_never_fail(
    client: Client, stream: Stream, load: QueryLoad, store: ObjectStore
) -> None:
    ended = client.watch(post(client, MODEL, stream.datasets[2]), timeout=SECONDS)
    assert ended["state"] == "published"
    assert load.wait_for(2, timeout=SECONDS) is not None
    probes = sum(len(rows) for rows in stream.probe_rows(2, datasets=1).values())
    wait_until(lambda: len(load.answers) == 2 * probes)
    manifest = client.version(MODEL, 2)
    drift = next(iter(manifest.report.drift.values()))
    assert 0 < drift.since_learned < 2
    client.promote(MODEL, 1, "to see that a roll back is a swap like any other")
    wait_until(lambda: client.embed(MODEL, "image", stream.probe_rows(1)["image"]).version == 1)
    report = load.stop()
    assert report.failures == []
    assert report.sent > 1000
    assert set(report.first_seen) == {1, 2}
    assert_answers_are_truthful(load, stream, store)


def assert_answers_are_truthful(load: QueryLoad, stream: Stream, store: ObjectStore) -> None:
    """Each answer equals the named version's heads applied to the features."""
    learned = stream.probe_rows(2, datasets=1)
    probes = [(modality, row) for modality, rows in learned.items() for row in rows]
    heads = {version: heads_of(store, version) for version in (1, 2)}
    assert len(load.answers) == 2 * len(probes)
    for (version, query), vector in load.answers.items():
        modality, row = probes[query]
        expected = heads[version].embed(modality, torch.tensor([row]))[0]
        torch.testing.assert_close(torch.tensor(vector), expected, rtol=0, atol=1e-5)
