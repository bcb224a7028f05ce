"""Requests for pre-flights: what is accepted, what is rejected with which message, and who sees it."""

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.unit.service.preflights.conftest import OUTLOOK, PreflightScene

PATH = "/v1/models/scenes/preflight"


def test_a_preflight_is_accepted_with_its_address(scene: PreflightScene) -> None:
    response = scene.plane.client.post(PATH, json=scene.body())
    body = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/preflights/{body['id']}"
    assert (body["state"], body["version"], body["outlook"]) == ("queued", 1, None)
    assert scene.view(body["id"]) == body


def test_the_answer_is_shown_once_it_is_there(scene: PreflightScene) -> None:
    preflight = scene.post()
    scene.store_result(preflight)
    scene.tick(2)
    view = scene.view(preflight)
    assert view["state"] == "done"
    assert view["outlook"] == OUTLOOK.model_dump(mode="json")
    assert view["finished_at"]


def test_the_same_idempotency_key_creates_one_preflight(scene: PreflightScene) -> None:
    body, headers = scene.body(), {"Idempotency-Key": "k-1"}
    first = scene.plane.client.post(PATH, json=body, headers=headers)
    again = scene.plane.client.post(PATH, json=body, headers=headers)
    assert first.json() == again.json()
    assert len(scene.plane.client.get("/v1/models/scenes/preflights").json()["items"]) == 1


def test_pages_list_those_of_one_model_in_order(scene: PreflightScene) -> None:
    preflight = [scene.post(name=f"new-{number}") for number in range(3)]
    path = "/v1/models/scenes/preflights?limit=2"
    page = scene.plane.client.get(path).json()
    rest = scene.plane.client.get(f"{path}&cursor={page['next_cursor']}").json()
    assert [item["id"] for item in page["items"] + rest["items"]] == preflight
    assert rest["next_cursor"] is None


def test_a_model_without_versions_has_no_preflight(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    plane.create_model()
    body = {"pair": {"first": "image", "second": "text"}, "shards": [plane.shard("new")]}
    response = plane.client.post(PATH, json=body)
    assert response.status_code == 409
    assert "no version yet" in response.json()["detail"]
    plane.close()


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"pair": {"first": "image", "second": "smell"}}, "pair.second", "no modality 'smell'"),
        ({"shards": [{"uri": "file:///etc/passwd"}]}, "shards[0].uri", "outside the allowed"),
        ({"shards": [{"uri": "upload:up-000000000000"}]}, "shards[0].uri", "there is no upload"),
        ({"shards": []}, "shards", "at least 1"),
    ],
)
def test_what_can_be_seen_at_once_is_refused(
    scene: PreflightScene, changes: dict[str, Any], field: str, words: str
) -> None:
    response = scene.plane.client.post(PATH, json=scene.body(**changes))
    assert response.status_code == 422
    (problem,) = response.json()["errors"]
    assert field in problem["field"]
    assert words in problem["message"]


def test_the_same_address_twice_is_refused(scene: PreflightScene) -> None:
    shard = scene.plane.shard("new")
    response = scene.plane.client.post(PATH, json=scene.body(shards=[shard, shard]))
    assert response.status_code == 422
    assert "named twice" in response.json()["errors"][0]["message"]


@pytest.mark.parametrize("path", ["/v1/preflights/pf-000000000000", "/v1/models/nobody/preflights"])
def test_what_is_not_there_is_not_found(scene: PreflightScene, path: str) -> None:
    assert scene.plane.client.get(path).status_code == 404
