"""The whole pipeline on the real example stream, with crashes, under queries.

The tests of this module go through one stream in order: each is one more dataset of the same model.
"""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx
import pytest
import torch

from cmcl.client import Client, CmclError, Json
from cmcl.contract.job import JobSpec
from cmcl.contract.model import ModelSpec, TrainingSpec
from cmcl.demo.queries import QueryLoad
from cmcl.demo.run import Stream, StreamDataset, read_stream
from cmcl.stack import LocalStack
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.uris import open_store
from cmcl.storage.versions import read_candidate, read_version
from tests.conftest import EXAMPLE_STREAM
from tests.ray.attempts import training_rank, wait_until
from workers.model.heads import ModalityHeads
from workers.train.job import train_dataset
from workers.train.versions import read_heads

pytestmark = pytest.mark.ray

MODEL = "e2e"
# Long enough that processes can be killed while it trains, also after its first checkpoint.
TRAINING = TrainingSpec(epochs=150, learning_rate=1e-4)
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
    return read_heads(store, read_version(store, model, version))


def test_first_dataset_becomes_the_first_version(
    client: Client, stream: Stream, load: QueryLoad, stack: LocalStack
) -> None:
    spec = ModelSpec(modalities=stream.modalities, policy="preserve", training=TRAINING)
    client.create_model(MODEL, spec)
    ended = client.watch(post(client, MODEL, stream.datasets[0]), timeout=SECONDS)
    assert (ended["state"], ended["version"], ended["attempt"]) == ("published", 1, 1)
    assert [attempt.outcome for attempt in client.attempts(ended.id)] == ["candidate"]
    assert client.progress(ended.id).points
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


def test_queries_never_fail_while_a_rank_and_the_control_plane_are_killed_and_the_version_changes(
    client: Client, stack: LocalStack, stream: Stream, load: QueryLoad, store: ObjectStore
) -> None:
    """The ranks begin again from a checkpoint while no control plane runs; the next one adopts their attempt."""
    # The first dataset of two modalities is solved; this one is trained on rows.
    job = post(client, MODEL, stream.datasets[1])
    wait_until(
        lambda: is_training(client, job) and list(store.keys(layout.run_checkpoints(job, 1)))
    )
    training_rank(stack).send_signal(signal.SIGKILL)
    stack.kill("service")
    # Not by the client, which would wait for the next one until the attempt has ended.
    down = httpx.get(f"http://127.0.0.1:{stack.ports.service}/v1/jobs/{job}")
    assert (down.status_code, "the control plane is starting" in down.text) == (503, True)
    stack.start_service()
    stack.wait_for_service()
    ended = client.watch(job, timeout=SECONDS)
    assert (ended["state"], ended["attempt"]) == ("published", 1)
    assert ended["progress"]["resumed_at"], "the ranks began again, from a checkpoint"
    assert [version["version"] for version in client.versions(MODEL)] == [1, 2]
    assert load.wait_for(f"{MODEL}@2", timeout=SECONDS) is not None
    probes = sum(len(rows) for rows in stream.probe_rows(2, datasets=1).values())
    wait_until(lambda: len(load.answers) == 2 * probes)
    manifest = client.version(MODEL, 2)
    assert manifest.report.ranks == 2
    drift = next(iter(manifest.report.drift.values()))
    assert 0 < drift.since_learned <= 0.5, "the bound of preserve"
    assert manifest.report.updates > 0, "trained on rows"
    client.promote(MODEL, 1, "to see that a roll back is a swap like any other")
    wait_until(lambda: client.embed(MODEL, "image", stream.probe_rows(1)["image"]).version == 1)
    report = load.stop()
    assert report.failures == []
    assert report.sent > 500
    assert set(report.first_seen) == {f"{MODEL}@1", f"{MODEL}@2"}
    assert_answers_are_truthful(load, stream, store)


def assert_answers_are_truthful(load: QueryLoad, stream: Stream, store: ObjectStore) -> None:
    """Each answer equals the named version's heads applied to the features."""
    learned = stream.probe_rows(2, datasets=1)
    probes = [(modality, row) for modality, rows in learned.items() for row in rows]
    heads = {f"{MODEL}@{version}": heads_of(store, version) for version in (1, 2)}
    assert len(load.answers) == 2 * len(probes)
    for (version, query), vector in load.answers.items():
        modality, row = probes[query]
        expected = heads[version].embed(modality, torch.tensor([row]))[0]
        torch.testing.assert_close(torch.tensor(vector), expected, rtol=0, atol=1e-5)


def test_two_ranks_on_ray_make_the_version_of_one_process(
    stack: LocalStack, store: ObjectStore, tmp_path: Path
) -> None:
    """The attempt of version 2 once more, by its own specification, in a copy of the store."""
    shutil.copytree(url2pathname(urlsplit(stack.store_uri).path), tmp_path / "store")
    copy = open_store((tmp_path / "store").as_uri())
    job = read_version(store, MODEL, 2).job
    spec = read_document(copy, layout.run_spec(job, 1), JobSpec)
    copy.put(
        layout.run_spec("alone", 1),
        spec.model_copy(update={"job": "alone"}).model_dump_json().encode(),
    )
    train_dataset(copy.uri, "alone", 1, torch.device("cpu"))
    candidate, version = read_candidate(copy, "alone", 1), read_version(store, MODEL, 2)
    for measured in ("drift", "evaluation", "score_errors"):
        datasets = getattr(candidate.report, measured).keys()
        assert getattr(version.report, measured).keys() == datasets, "each rank measures its part"
    alone = read_heads(copy, candidate)
    for name, weight in heads_of(store, 2).weights.items():
        torch.testing.assert_close(weight, alone.weights[name], rtol=0, atol=1e-5)
