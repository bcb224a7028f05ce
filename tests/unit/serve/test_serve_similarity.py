"""Items of any modalities scored against each other by one version."""

import json
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from tests.fakes.versions import random_heads
from tests.unit.serve.conftest import MODEL, SPEC, Replica


def features(modality: str, count: int, seed: int = 1) -> list[list[float]]:
    random = np.random.default_rng(seed)
    rows: list[list[float]] = random.normal(size=(count, SPEC.widths[modality])).tolist()
    return rows


def items(modality: str, count: int, seed: int = 1) -> list[dict[str, object]]:
    return [{"modality": modality, "feature": row} for row in features(modality, count, seed)]


def ask(replica: Replica, **changes: object) -> httpx.Response:
    fields = {
        "model": MODEL,
        "queries": items("text", 2),
        "candidates": items("image", 5),
        **changes,
    }
    body = json.dumps({name: value for name, value in fields.items() if value is not None})
    return replica.run(lambda client: client.post("/v1/similarity", content=body))


def expected() -> torch.Tensor:
    heads = random_heads(SPEC, seed=1)
    queries = heads.embed("text", torch.tensor(features("text", 2)))
    return queries @ heads.embed("image", torch.tensor(features("image", 5))).mT


def test_scores_are_cosines_of_every_query_and_candidate(serving: Replica) -> None:
    response = ask(serving)
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body["object"], body["model"]) == ("similarity", "scenes@1")
    assert response.headers["x-model-version"] == "1"
    torch.testing.assert_close(torch.tensor(body["scores"]), expected(), atol=1e-5, rtol=0)


def test_the_best_come_first_with_their_places(serving: Replica) -> None:
    body = ask(serving, top_k=3).json()
    wanted = expected().topk(3, dim=1)
    assert [[one["index"] for one in each] for each in body["results"]] == wanted.indices.tolist()
    got = torch.tensor([[one["score"] for one in each] for each in body["results"]])
    torch.testing.assert_close(got, wanted.values, atol=1e-5, rtol=0)
    assert "scores" not in body


def test_more_best_than_candidates_are_all_of_them(serving: Replica) -> None:
    assert [len(each) for each in ask(serving, top_k=99).json()["results"]] == [5, 5]


def test_candidates_of_several_modalities_keep_their_order(serving: Replica) -> None:
    mixed = [*items("image", 2), *items("text", 2), *items("image", 1, seed=7)]
    whole = ask(serving, candidates=mixed).json()["scores"]
    for place, one in enumerate(mixed):
        alone = ask(serving, candidates=[one]).json()["scores"]
        np.testing.assert_allclose(
            [row[place] for row in whole], [row[0] for row in alone], atol=1e-6
        )


def test_a_large_product_gives_what_a_small_one_does(serving: Replica) -> None:
    """Above the number of scores that are computed in another thread."""
    large = serving.args.model_copy(
        update={"max_rows": 4096, "max_rows_in_flight": 9000, "max_body_bytes": 10_000_000}
    )
    serving.app = serving.app_of(large)
    scores = ask(serving, queries=items("text", 100), candidates=items("image", 50)).json()[
        "scores"
    ]
    small = ask(serving, queries=items("text", 100)[:2], candidates=items("image", 50))
    np.testing.assert_allclose(scores[:2], small.json()["scores"], atol=1e-6)
    assert len(scores) == 100


def test_rows_of_both_sides_are_counted(serving: Replica) -> None:
    ask(serving)
    assert serving.metrics.answers == [("scenes", 7)]


def problem(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"queries": []}, "queries", "queries has 0 rows; permitted are 1 to 50"),
        ({"candidates": []}, "candidates", "candidates has 0 rows"),
        ({"candidates": items("image", 49)}, "candidates", "have 51 rows together; permitted are"),
        ({"top_k": 0}, "top_k", "top_k is 0; permitted is greater than or equal to 1"),
        ({"queries": None}, "queries", "the field 'queries' is missing"),
        ({"limit": 3}, "limit", 'there is no field "limit"'),
        (
            {"queries": [{"modality": "smell", "feature": [1]}]},
            "queries",
            'modality is "smell"; this model has image, text',
        ),
        (
            {"candidates": [*items("text", 1), {"modality": "image", "feature": [1.0] * 4}]},
            "candidates",
            "candidates[1] has 4 numbers; a feature of modality 'image' has 5",
        ),
        (
            {"candidates": [*items("image", 3), {"modality": "text", "feature": [0.0] * 4}]},
            "candidates",
            "candidates[3] is all zeros",
        ),
        (
            {"queries": [*items("text", 1), {"modality": "image", "data": "AAAA"}]},
            "queries",
            "modality 'image' of model 'scenes' takes features: it is bound to no encoder",
        ),
    ],
)
def test_invalid_requests_are_rejected_with_a_message(
    serving: Replica, changes: dict[str, object], param: str, words: str
) -> None:
    error = problem(ask(serving, **changes))
    assert words in error["message"]
    assert error["param"] == param


def test_too_many_scores_are_refused_and_their_best_are_not(serving: Replica) -> None:
    large = serving.args.model_copy(
        update={"max_rows": 4096, "max_rows_in_flight": 9000, "max_body_bytes": 10_000_000}
    )
    serving.app = serving.app_of(large)
    sides = {"queries": items("text", 600), "candidates": items("image", 600)}
    assert "360000 scores; permitted are 262144" in problem(ask(serving, **sides))["message"]
    assert len(ask(serving, **sides, top_k=1).json()["results"]) == 600


def test_one_version_scores_both_sides(serving: Replica) -> None:
    serving.publish(version=2)
    serving.poll()
    old = ask(serving, model="scenes@1").json()
    assert old["model"] == "scenes@1"
    torch.testing.assert_close(torch.tensor(old["scores"]), expected(), atol=1e-5, rtol=0)
