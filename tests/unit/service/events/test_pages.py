"""Events a page at a time."""

from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient


def _items(plane: ControlPlane, query: str = "") -> list[dict[str, object]]:
    response = plane.client.get(f"/v1/events?limit=200{query}")
    assert response.status_code == 200, response.text
    items: list[dict[str, object]] = response.json()["items"]
    return items


def test_pages_hold_each_event_once_and_in_order(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset())
    whole = _items(plane)
    assert whole[0]["kind"] == "job.queued"
    assert whole[-1]["kind"] == "version.published"
    assert [item["id"] for item in whole] == list(range(1, len(whole) + 1))
    found, cursor = [], ""
    while cursor is not None:
        query = f"&cursor={cursor}" if cursor else ""
        page = plane.client.get(f"/v1/events?limit=3{query}").json()
        found += page["items"]
        cursor = page["next_cursor"]
    assert found == whole


def test_an_event_is_there_as_soon_as_its_cause_was_answered(plane: ControlPlane) -> None:
    for number in range(3):
        job = plane.post_dataset(f"set-{number}")
        assert _items(plane)[-1]["job"] == job


def test_events_can_be_narrowed(plane: ControlPlane) -> None:
    plane.create_model("sounds")
    first, second = plane.post_dataset(), plane.post_dataset(model="sounds")
    plane.tick(2)
    of_model = _items(plane, "&model=sounds")
    assert {item["job"] for item in of_model} == {second}
    assert {item["job"] for item in _items(plane, f"&job={first}")} == {first}
    of_kind = _items(plane, "&kind=job.queued&kind=job.failed")
    assert [(item["kind"], item["job"]) for item in of_kind] == [
        ("job.queued", first),
        ("job.queued", second),
    ]
    assert _items(plane, "&model=nowhere") == []


@pytest.mark.parametrize("kind", ["job.exploded", "", "' OR 1=1 --"])
def test_an_unknown_kind_is_refused_with_the_known_ones(plane: ControlPlane, kind: str) -> None:
    response = plane.client.get("/v1/events", params={"kind": kind})
    assert response.status_code == 422
    (problem,) = response.json()["errors"]
    assert problem["field"] == "kind[0]"
    assert "job.queued" in problem["message"]


def test_events_of_another_owner_are_invisible(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY)
    operator = KeyClient(plane, ADMIN_KEY)
    jobs = {}
    for owner in ("red", "blue"):
        plane.client = operator.client_with_key(owner, owner=owner)
        plane.create_model(owner)
        jobs[owner] = plane.post_dataset(model=owner)
    red = operator.client_with_key("red-again", owner="red")
    items = red.get("/v1/events").json()["items"]
    assert {item["job"] for item in items} == {jobs["red"]}
    assert {item["job"] for item in operator.get("/v1/events").json()["items"]} == {*jobs.values()}
    assert red.get(f"/v1/jobs/{jobs['blue']}/events").status_code == 404
    assert red.get("/v1/events", params={"model": "blue"}).json()["items"] == []
    plane.close()


def test_events_are_not_sent_to_a_key_without_read_scope(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY)
    writer = KeyClient(plane, ADMIN_KEY).client_with_key("writer", ("write",))
    for path in ("/v1/events", "/v1/jobs/job-0123456789ab/events"):
        assert writer.get(path).status_code == 403
        assert writer.get(path, headers={"Accept": "text/event-stream"}).status_code == 403
    plane.close()
