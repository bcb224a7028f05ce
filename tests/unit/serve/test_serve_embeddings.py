"""Responses to valid requests."""

import base64

import numpy as np
import pytest
import torch

from tests.fakes.versions import random_heads
from tests.unit.serve.conftest import SPEC, Replica


def expected(version: int, modality: str, rows: list[list[float]]) -> torch.Tensor:
    return random_heads(SPEC, seed=version).embed(modality, torch.tensor(rows))


def random_rows(count: int, width: int) -> list[list[float]]:
    rows: list[list[float]] = np.random.default_rng(1).normal(size=(count, width)).tolist()
    return rows


@pytest.mark.parametrize(("modality", "width"), [("image", 5), ("text", 4)])
@pytest.mark.parametrize("count", [1, 3, 50])
def test_answers_equal_the_heads_applied_to_features(
    shared: Replica, modality: str, width: int, count: int
) -> None:
    rows = random_rows(count, width)
    response = shared.embed(modality=modality, input=rows)
    assert response.status_code == 200
    got = torch.tensor([each["embedding"] for each in response.json()["data"]])
    torch.testing.assert_close(got, expected(1, modality, rows), atol=1e-5, rtol=0)


def test_the_answer_has_the_shape_of_openai(shared: Replica) -> None:
    response = shared.embed(input=random_rows(2, 5))
    body = response.json()
    assert list(body) == ["object", "data", "model", "usage"]
    assert (body["object"], body["model"]) == ("list", "scenes@1")
    assert body["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    assert [(each["object"], each["index"]) for each in body["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
    ]
    assert response.headers["x-model-version"] == "1"
    assert response.headers["content-type"] == "application/json"


def test_base64_holds_the_same_floats(shared: Replica) -> None:
    rows = random_rows(3, 5)
    floats = shared.embed(input=rows).json()["data"]
    encoded = shared.embed(input=rows, encoding_format="base64").json()["data"]
    for one, other in zip(floats, encoded, strict=True):
        decoded = np.frombuffer(base64.b64decode(other["embedding"]), dtype="<f4")
        np.testing.assert_array_equal(decoded, np.array(one["embedding"], dtype=np.float32))


def test_without_normalize_the_output_of_the_head_is_returned(shared: Replica) -> None:
    rows = random_rows(3, 5)
    data = shared.embed(input=rows, normalize=False).json()["data"]
    outputs = random_heads(SPEC, seed=1).outputs("image", torch.tensor(rows))
    got = torch.tensor([each["embedding"] for each in data])
    torch.testing.assert_close(got, outputs, atol=1e-5, rtol=0)
    assert (got.norm(dim=1) - 1).abs().max() > 1e-3


def test_only_the_direction_of_a_feature_counts(shared: Replica) -> None:
    small, large = shared.embed(input=[1e-11] * 5), shared.embed(input=[4e17] * 5)
    one, other = (each.json()["data"][0]["embedding"] for each in (small, large))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_ready_after_the_first_poll_and_not_before(replica: Replica) -> None:
    assert replica.get("/healthz").json()["status"] == "ok"
    assert replica.get("/readyz").status_code == 503
    assert replica.embed().status_code == 503
    replica.poll()
    assert replica.get("/readyz").status_code == 200
    assert replica.get("/v1/models").json() == {"object": "list", "data": []}
