"""Held-out rows of a dataset: listed, and searched by any version."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch

from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.modality import ModalityPair
from cmcl.storage import layout
from tests.fakes.app_client import AppClient
from tests.fakes.feature_shards import feature_table, write_shard
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.letter_encoder import LetterEncoders
from tests.unit.serve.conftest import MODEL, Replica
from tests.unit.serve.served_versions import load_version
from tests.unit.serve.test_serve_auth_of_routes import LAB, SHOP, bearer, guarded
from workers.files.shards import describe_shard
from workers.serve.api.app import create_api
from workers.serve.api.held_out import HeldOutSets
from workers.serve.settings import ServeSettings

DATASET = f"{MODEL}-data-1"
PATH = f"/v1/models/{MODEL}/held-out/{DATASET}"
TABLE = feature_table(9, widths=(5, 4), prefix="pair")
LABELLED = TABLE.append_column("label", pa.array([f"class-{row % 3}" for row in range(9)]))


@pytest.fixture
def holding(store: FlakyStore, tmp_path: Path) -> Replica:
    """A replica with versions 1 and 2, of which the first has learned a dataset with held-out rows in two files."""
    replica = Replica(store, ServeSettings(store=store.uri), encoders=LetterEncoders())
    replica.publish(version=1)
    replica.publish(version=2)
    replica.point(generation=3, version=1)
    replica.poll()
    shards = [shard(tmp_path, f"{first}", LABELLED.slice(first, 5)) for first in (0, 5)]
    keep(store, shards)
    return replica


def shard(folder: Path, name: str, table: pa.Table) -> Shard:
    path = folder / f"evaluation-{name}.parquet"
    return describe_shard(path, write_shard(path, table).uri)


def keep(store: FlakyStore, shards: list[Shard]) -> None:
    """Write the manifest of the dataset."""
    manifest = DatasetManifest(
        dataset=DATASET,
        model=MODEL,
        name="one",
        pair=ModalityPair(first="image", second="text"),
        shards=tuple(shards),
        evaluation_shards=tuple(shards),
    )
    store.put(layout.dataset_manifest(DATASET), manifest.model_dump_json().encode())


def search(replica: Replica, body: dict[str, object], path: str = PATH) -> httpx.Response:
    content = json.dumps(body).encode()
    return replica.run(lambda client: client.post(f"{path}/search", content=content))


def features(side: int) -> np.ndarray:
    column = LABELLED.column(f"feature_{'ab'[side]}").combine_chunks()
    return column.flatten().to_numpy().reshape(len(LABELLED), -1)


def scores(replica: Replica, version: int, row: int) -> np.ndarray:
    """Scores of the image of a row with all texts, by plain products."""
    heads = load_version(replica.store, MODEL, version).heads
    image = heads.embed("image", torch.from_numpy(features(0)[row : row + 1].copy()))
    texts = heads.embed("text", torch.from_numpy(features(1).copy()))
    return (texts @ image[0]).numpy()


def test_rows_are_listed_with_ids_and_labels(holding: Replica) -> None:
    found = holding.get(f"{PATH}?offset=3&limit=4").json()
    assert [each["row"] for each in found["data"]] == [3, 4, 5, 6]
    assert found["data"][2] == {"row": 5, "id": "pair-5", "label": "class-2"}
    assert (found["pair"], found["rows"], found["rows_stored"]) == (["image", "text"], 9, 9)
    assert found["next_offset"] == 7
    assert holding.get(f"{PATH}?offset=7").json()["next_offset"] is None
    assert holding.get(f"{PATH}?offset=100").json()["data"] == []


@pytest.mark.parametrize("version", [1, 2])
def test_a_row_is_searched_for_by_any_version_that_has_learned_it(
    holding: Replica, version: int
) -> None:
    if version == 2:
        forget_who_learned(holding)
    answer = search(
        holding, {"row": 4, "modality": "image"}, PATH.replace(MODEL, f"{MODEL}@{version}", 1)
    )
    assert answer.status_code == 200, answer.text
    found, expected = answer.json(), scores(holding, version, 4)
    assert found["model"] == f"{MODEL}@{version}"
    order = np.argsort(-expected, kind="stable")
    assert [hit["row"] for hit in found["data"]] == order.tolist()
    assert {hit["modality"] for hit in found["data"]} == {"text"}
    assert [hit["score"] for hit in found["data"]] == pytest.approx(
        expected[order].tolist(), abs=1e-5
    )
    assert found["partner"]["rank"] == 1 + int((expected > expected[4]).sum())
    assert found["partner"]["score"] == pytest.approx(expected[4], abs=1e-5)


def forget_who_learned(replica: Replica) -> None:
    """Let version 2 have learned what version 1 has: the fake versions have one dataset each."""
    key = layout.version_manifest(MODEL, 2)
    first = json.loads(replica.store.read(layout.version_manifest(MODEL, 1)))
    second = json.loads(replica.store.read(key))
    second["learned"] = [*first["learned"], *second["learned"]]
    # Without its checksum, as one that was written by hand.
    del second["sha256"]
    replica.store.put(key, json.dumps(second).encode())


@pytest.mark.parametrize("modality", ["image", "text"])
def test_the_ranks_of_rows_are_those_of_a_search_for_each(holding: Replica, modality: str) -> None:
    def post(path: str, body: dict[str, object]) -> httpx.Response:
        return holding.run(lambda client: client.post(f"{PATH}/{path}", content=json.dumps(body)))

    answer = post("ranks", {"modality": modality, "limit": 6}).json()
    assert (answer["model"], answer["modality"], answer["rows"]) == (f"{MODEL}@1", modality, 9)
    assert [each["row"] for each in answer["data"]] == list(range(6))
    for each in answer["data"]:
        alone = search(holding, {"row": each["row"], "modality": modality}).json()
        assert each["rank"] == alone["partner"]["rank"]
        assert each["first"] == {
            **alone["data"][0],
            "score": pytest.approx(alone["data"][0]["score"], abs=1e-6),
        }
    assert post("ranks", {}).json()["modality"] == "image"
    assert len(post("ranks", {}).json()["data"]) == 9
    assert "the dataset has image and text" in post("ranks", {"modality": "audio"}).text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "either a row or a query"),
        ({"row": 1, "query": {"modality": "text", "text": "a"}}, "either a row or a query"),
        ({"row": 9, "modality": "image"}, "permitted are 0 to 8"),
        ({"row": 1}, "the dataset has image and text"),
        ({"row": 1, "modality": "audio"}, "the dataset has image and text"),
        ({"row": 1, "modality": "image", "among": "audio"}, "the dataset has image and text"),
        ({"row": -1, "modality": "image"}, "row"),
        ({"row": 5000, "modality": "image"}, "row"),
        ({"row": 1, "modality": "image", "top_k": 0}, "top_k"),
        ({"row": 1, "modality": "image", "top_k": 201}, "top_k"),
        ({"query": {"modality": "image", "feature": [1, 2]}}, "5"),
        ({"query": {"modality": "image", "text": "a"}}, "encoder"),
        ({"row": 1, "modality": "image", "more": 1}, "more"),
    ],
    ids=str,
)
def test_a_wrong_search_says_what_is_wrong(
    holding: Replica, body: dict[str, object], message: str
) -> None:
    answer = search(holding, body)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


def test_what_the_version_has_not_learned_is_not_there(holding: Replica, store: FlakyStore) -> None:
    """Also a dataset that lies in the same store, and paths that lead elsewhere."""
    for dataset in (f"{MODEL}-data-2", "other-data-1", "%2e%2e%2fx"):
        for path in (PATH.replace(DATASET, dataset), PATH.replace(MODEL, f"{MODEL}@2", 1)):
            assert holding.get(path).status_code == 404
            assert search(holding, {"row": 1, "modality": "image"}, path).status_code == 404
    assert holding.get(PATH.replace(MODEL, "no-model", 1)).status_code == 404


def test_a_dataset_without_held_out_rows_says_so(holding: Replica, tmp_path: Path) -> None:
    keep_manifest = json.loads(holding.store.read(layout.dataset_manifest(DATASET)))
    keep_manifest["evaluation_shards"] = []
    holding.store.put(layout.dataset_manifest(DATASET), json.dumps(keep_manifest).encode())
    answer = holding.get(PATH)
    assert answer.status_code == 404
    assert "has no held-out rows" in answer.text


def test_rows_that_were_changed_in_the_store_are_refused(holding: Replica, tmp_path: Path) -> None:
    shard(tmp_path, "5", LABELLED.slice(4, 5))
    answer = holding.get(PATH)
    assert answer.status_code == 500
    assert "fail their checks" in answer.text
    assert str(tmp_path) not in answer.text


def test_of_a_large_set_the_first_rows_are_read(holding: Replica) -> None:
    sets = HeldOutSets(holding.store, most_rows=6)
    found = asyncio.run(sets.of(MODEL, 1, DATASET))
    assert (len(found), found.stored) == (6, 9)
    assert found.ids == tuple(f"pair-{row}" for row in range(6))
    np.testing.assert_array_equal(found.features["text"], features(1)[:6])


def test_rows_are_those_of_the_owner_alone(holding: Replica) -> None:
    holding.point(generation=4, version=1, owner="lab")
    holding.poll()
    client = AppClient(create_api(guarded(holding)))
    for key, status in ((LAB, 200), (SHOP, 404)):
        assert client.get(PATH, headers=bearer(key)).status_code == status
        body: dict[str, Any] = {"row": 1, "modality": "image"}
        assert client.post(f"{PATH}/search", json=body, headers=bearer(key)).status_code == status


def test_without_the_store_it_says_try_again(holding: Replica) -> None:
    holding.store.broken = "/"
    answer = holding.get(PATH)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
