"""Datasets that grow until they are sealed."""

from typing import Any

import pytest

from cmcl.contract.api.jobs import JobState
from tests.fakes.control_plane import ControlPlane


def _open(plane: ControlPlane, **changes: Any) -> str:
    body = plane.dataset_body("one", shards=[], sealed=False, **changes)
    answer = plane.client.post("/v1/datasets", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["job"] is None
    dataset: str = answer.json()["dataset"]["id"]
    assert answer.headers["Location"] == f"/v1/datasets/{dataset}"
    return dataset


def _add(plane: ControlPlane, dataset: str, **body: Any) -> int:
    return plane.client.post(f"/v1/datasets/{dataset}/shards", json=body).status_code


def test_shards_are_added_until_it_is_sealed(plane: ControlPlane) -> None:
    dataset = _open(plane)
    assert _add(plane, dataset, shards=[plane.shard("a")]) == 200
    assert _add(plane, dataset, shards=[plane.shard("b")]) == 200
    plane.tick(5)
    sealed = plane.client.post(f"/v1/datasets/{dataset}/seal")
    assert sealed.status_code == 202
    job = sealed.json()["job"]["id"]
    assert _add(plane, dataset, shards=[plane.shard("c")]) == 409
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    assert plane.versions()[0].manifest.learned[0].rows == 32


def test_sealing_twice_is_one_job(plane: ControlPlane) -> None:
    dataset = _open(plane)
    _add(plane, dataset, shards=[plane.shard("a")])
    first, second = (plane.client.post(f"/v1/datasets/{dataset}/seal") for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json()["job"]["id"] == second.json()["job"]["id"]


def test_an_empty_dataset_cannot_be_sealed(plane: ControlPlane) -> None:
    answer = plane.client.post(f"/v1/datasets/{_open(plane)}/seal")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "shards"


@pytest.mark.parametrize("body", [{}, {"shards": []}])
def test_adding_nothing_is_an_error(plane: ControlPlane, body: dict[str, object]) -> None:
    assert _add(plane, _open(plane), **body) == 422


def test_a_shard_is_not_added_twice(plane: ControlPlane) -> None:
    dataset = _open(plane)
    assert _add(plane, dataset, shards=[plane.shard("a")]) == 200
    assert _add(plane, dataset, evaluation_shards=[plane.shard("a")]) == 422


def test_too_many_shards_are_refused_while_they_are_added(plane: ControlPlane) -> None:
    dataset = _open(plane)
    prefix = plane.shards.resolve().as_uri()
    many = [{"uri": f"{prefix}/{number}"} for number in range(10_000)]
    assert _add(plane, dataset, shards=many) == 200
    assert _add(plane, dataset, shards=[plane.shard("more")]) == 422


def test_a_sealed_twin_is_pointed_out(plane: ControlPlane) -> None:
    plane.client.post("/v1/datasets", json=plane.dataset_body("one", shards=[plane.shard("a")]))
    dataset = _open(plane)
    _add(plane, dataset, shards=[plane.shard("a")])
    answer = plane.client.post(f"/v1/datasets/{dataset}/seal")
    assert answer.status_code == 409
    assert "delete this one" in answer.json()["detail"]


def test_an_open_dataset_can_be_deleted(plane: ControlPlane) -> None:
    dataset = _open(plane)
    path = f"/v1/datasets/{dataset}"
    assert plane.client.request("DELETE", path).status_code == 204
    assert plane.client.get(path).status_code == 404
    assert plane.client.get("/v1/datasets").json()["items"] == []


def test_what_is_learned_or_being_learned_cannot_be_deleted(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    path = f"/v1/datasets/{plane.job(job).dataset}"
    assert plane.client.request("DELETE", path).status_code == 409
    plane.run_to_end(job)
    answer = plane.client.request("DELETE", path)
    assert answer.status_code == 409
    assert "version 1" in answer.json()["detail"]


def test_a_failed_dataset_can_be_deleted_and_posted_again(plane: ControlPlane) -> None:
    body = plane.dataset_body("one")
    job = plane.client.post("/v1/datasets", json=body).json()["job"]["id"]
    plane.client.post(f"/v1/jobs/{job}/cancel")
    path = f"/v1/datasets/{plane.job(job).dataset}"
    assert plane.client.request("DELETE", path).status_code == 204
    assert plane.client.post("/v1/datasets", json=body).status_code == 202


def test_a_dataset_of_a_deleted_model_cannot_be_sealed(plane: ControlPlane) -> None:
    dataset = _open(plane)
    _add(plane, dataset, shards=[plane.shard("a")])
    assert plane.client.request("DELETE", "/v1/models/scenes").status_code == 204
    assert plane.client.post(f"/v1/datasets/{dataset}/seal").status_code == 404
    assert plane.client.get("/v1/jobs").json()["items"] == []
