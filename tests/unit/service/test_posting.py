"""Posting a dataset: responses, repetitions, idempotency keys."""

import json

import pytest

from cmcl.contract.model import ModelSpec
from service.registry.models import NewModel
from tests.fakes.control_plane import SPEC, ControlPlane


def test_a_model_answers_with_everything_resolved(plane: ControlPlane) -> None:
    response = plane.client.post("/v1/models", json={"name": "new", **SPEC})
    assert response.status_code == 201
    assert response.headers["location"] == "/v1/models/new"
    body = response.json()
    sent = {field: body[field] for field in NewModel.model_fields}
    assert ModelSpec.model_validate(SPEC) == NewModel.model_validate(sent).spec({})
    assert (body["head_version"], body["live_version"], body["live_generation"]) == (None, None, 0)


def test_the_same_model_again_is_the_same_answer(plane: ControlPlane) -> None:
    first = plane.client.get("/v1/models/scenes").json()
    again = plane.client.post("/v1/models", json={"name": "scenes", **SPEC})
    assert (again.status_code, again.json()) == (200, first)


def test_a_dataset_is_accepted_with_its_job(plane: ControlPlane) -> None:
    response = plane.client.post("/v1/datasets", json=plane.dataset_body("one"))
    assert response.status_code == 202
    body = response.json()
    assert response.headers["location"] == f"/v1/jobs/{body['job']['id']}"
    assert (body["job"]["state"], body["job"]["attempt"]) == ("queued", 0)
    assert body["job"]["dataset"] == body["dataset"]["id"]
    assert plane.client.get(response.headers["location"]).json() == body["job"]


def test_the_same_dataset_again_is_the_same_job(plane: ControlPlane) -> None:
    body = plane.dataset_body("one")
    first = plane.client.post("/v1/datasets", json=body)
    again = plane.client.post("/v1/datasets", json={**body, "name": "other-name"})
    assert (again.status_code, again.json()) == (200, first.json())
    assert len(plane.client.get("/v1/jobs").json()["items"]) == 1


def test_a_learned_dataset_again_is_the_same_job(plane: ControlPlane) -> None:
    body = plane.dataset_body("one")
    job = plane.client.post("/v1/datasets", json=body).json()["job"]["id"]
    plane.run_to_end(job)
    again = plane.client.post("/v1/datasets", json=body)
    assert again.status_code == 200
    assert (again.json()["job"]["id"], again.json()["job"]["state"]) == (job, "published")


def test_the_same_shards_are_new_to_another_model(plane: ControlPlane) -> None:
    plane.create_model("sounds")
    body = plane.dataset_body("one")
    first = plane.client.post("/v1/datasets", json=body)
    second = plane.client.post("/v1/datasets", json={**body, "model": "sounds"})
    assert (first.status_code, second.status_code) == (202, 202)


@pytest.mark.parametrize("route", ["/v1/models", "/v1/datasets", "cancel"])
def test_a_key_repeats_its_answer(plane: ControlPlane, route: str) -> None:
    body: dict[str, object] | None = {"name": "new", **SPEC}
    if route == "/v1/datasets":
        body = plane.dataset_body("one")
    if route == "cancel":
        route, body = f"/v1/jobs/{plane.post_dataset()}/cancel", None
    headers = {"Idempotency-Key": "key-1"}
    first = plane.client.post(route, json=body, headers=headers)
    again = plane.client.post(route, json=body, headers=headers)
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["location"] == first.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"


def test_a_key_is_good_for_one_body(plane: ControlPlane) -> None:
    headers = {"Idempotency-Key": "key-1"}
    plane.client.post("/v1/datasets", json=plane.dataset_body("one"), headers=headers)
    body = plane.dataset_body("two")
    response = plane.client.post("/v1/datasets", json=body, headers=headers)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"
    assert len(plane.client.get("/v1/jobs").json()["items"]) == 1


def test_a_key_of_a_refused_request_can_be_used_again(plane: ControlPlane) -> None:
    headers = {"Idempotency-Key": "key-1"}
    body = plane.dataset_body("one", model="sounds")
    assert plane.client.post("/v1/datasets", json=body, headers=headers).status_code == 404
    plane.create_model("sounds")
    assert plane.client.post("/v1/datasets", json=body, headers=headers).status_code == 202


def test_a_key_counts_per_address(plane: ControlPlane) -> None:
    headers = {"Idempotency-Key": "key-1"}
    one, two = plane.post_dataset("one"), plane.post_dataset("two")
    for job in (one, two):
        response = plane.client.post(f"/v1/jobs/{job}/cancel", headers=headers)
        assert response.json()["id"] == job


_HALF = '"\\ud800"'


@pytest.mark.parametrize(
    "encoders", ['{"image": {"kind": %s}}', "{%s: {}}", '{"image": {"settings": {"a": [%s]}}}']
)
def test_half_of_a_surrogate_pair_is_refused(plane: ControlPlane, encoders: str) -> None:
    """JSON has it and UTF-8 does not: no record and no request for a preparation could be written."""
    body = json.dumps(plane.dataset_body("one"))[:-1] + f', "encoders": {encoders % _HALF}}}'
    headers = {"Content-Type": "application/json"}
    response = plane.client.post("/v1/datasets", content=body, headers=headers)
    assert response.status_code == 422
    assert "surrogate" in response.json()["errors"][0]["message"]
    assert plane.client.get("/v1/jobs").json()["items"] == []
