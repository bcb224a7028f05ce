"""Lists, pages and single objects."""

import pytest

from cmcl.contract.version import VersionManifest
from tests.fakes.control_plane import ControlPlane


def _all_pages(plane: ControlPlane, path: str, limit: int) -> list[list[dict[str, object]]]:
    pages, cursor = [], ""
    while True:
        page = plane.client.get(f"{path}{'&' if '?' in path else '?'}limit={limit}{cursor}").json()
        pages.append(page["items"])
        if page["next_cursor"] is None:
            return pages
        cursor = f"&cursor={page['next_cursor']}"


@pytest.mark.parametrize(
    ("path", "field"), [("/v1/models", "name"), ("/v1/datasets", "id"), ("/v1/jobs", "id")]
)
def test_pages_hold_each_item_once(plane: ControlPlane, path: str, field: str) -> None:
    for number in range(4):
        plane.create_model(f"model-{number}")
        plane.post_dataset(f"set-{number}")
    whole = plane.client.get(path).json()
    pages = _all_pages(plane, path, 2)
    assert [len(page) for page in pages] in ([2, 2], [2, 2, 1])
    assert [item[field] for page in pages for item in page] == [i[field] for i in whole["items"]]
    assert whole["next_cursor"] is None


_ORDERED = {
    "/v1/models": "name",
    "/v1/datasets": "id",
    "/v1/jobs": "id",
    "/v1/jobs?state=published": "id",
    "/v1/jobs?model=scenes": "id",
    "/v1/events": "id",
    "/v1/events?model=scenes": "id",
    "/v1/models/scenes/versions": "version",
    "/v1/models/scenes/promotions": "generation",
}


@pytest.fixture
def learned_plane(plane: ControlPlane) -> ControlPlane:
    """A control plane whose model has three versions."""
    for name in ("one", "two", "three"):
        plane.create_model(f"model-{name}")
        plane.run_to_end(plane.post_dataset(name))
    return plane


@pytest.mark.parametrize(("path", "field"), _ORDERED.items())
def test_a_list_in_descending_order_is_the_ascending_one_reversed(
    learned_plane: ControlPlane, path: str, field: str
) -> None:
    query = f"{path}{'&' if '?' in path else '?'}order="
    ascending = [
        item[field] for page in _all_pages(learned_plane, f"{query}asc", 2) for item in page
    ]
    pages = _all_pages(learned_plane, f"{query}desc", 2)
    assert all(len(page) == 2 for page in pages[:-1])
    assert [item[field] for page in pages for item in page] == ascending[::-1]
    assert len(ascending) >= 3


def test_new_items_do_not_shift_the_next_page(learned_plane: ControlPlane) -> None:
    first = learned_plane.client.get("/v1/jobs?order=desc&limit=2").json()
    learned_plane.post_dataset("four")
    cursor = first["next_cursor"]
    second = learned_plane.client.get(f"/v1/jobs?order=desc&limit=2&cursor={cursor}").json()
    assert len({item["id"] for item in (*first["items"], *second["items"])}) == 3


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/models", "/v1/events"])
def test_a_cursor_is_of_one_order_only(learned_plane: ControlPlane, path: str) -> None:
    cursor = learned_plane.client.get(f"{path}?order=desc&limit=1").json()["next_cursor"]
    assert learned_plane.client.get(f"{path}?order=desc&cursor={cursor}").status_code == 200
    for query in ("", "order=asc&"):
        response = learned_plane.client.get(f"{path}?{query}cursor={cursor}")
        assert response.status_code == 422
        (problem,) = response.json()["errors"]
        assert problem["field"] == "cursor"
        assert "order=desc" in problem["message"]


def test_lists_can_be_narrowed(plane: ControlPlane) -> None:
    plane.create_model("sounds")
    first, second = plane.post_dataset(), plane.post_dataset(model="sounds")
    plane.client.post(f"/v1/jobs/{first}/cancel")
    for query, expected in (
        ("model=scenes", [first]),
        ("model=sounds", [second]),
        ("state=cancelled", [first]),
        ("model=sounds&state=cancelled", []),
    ):
        items = plane.client.get(f"/v1/jobs?{query}").json()["items"]
        assert [item["id"] for item in items] == expected
    items = plane.client.get("/v1/datasets?model=sounds").json()["items"]
    assert [item["job"] for item in items] == [second]


def test_versions_and_promotions_come_in_pages(plane: ControlPlane) -> None:
    for name in ("one", "two", "three"):
        plane.run_to_end(plane.post_dataset(name))
    pages = _all_pages(plane, "/v1/models/scenes/versions", 2)
    assert [[item["version"] for item in page] for page in pages] == [[1, 2], [3]]
    assert [item["dataset_name"] for page in pages for item in page] == ["one", "two", "three"]
    pages = _all_pages(plane, "/v1/models/scenes/promotions", 2)
    assert [[item["generation"] for item in page] for page in pages] == [[1, 2], [3]]


def test_a_list_of_versions_reads_no_manifest(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset())
    whole = plane.client.get("/v1/models/scenes/versions").json()
    with plane.context.database.write() as connection:
        connection.exec_driver_sql("UPDATE versions SET manifest = '{}'")
    assert plane.client.get("/v1/models/scenes/versions").json() == whole


def test_a_version_shows_its_whole_manifest(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset())
    body = plane.client.get("/v1/models/scenes/versions/1").json()
    assert VersionManifest.model_validate(body["manifest"]) == plane.versions()[0].manifest
    assert body["stored_at"] is not None


def test_a_dataset_shows_what_was_verified(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    dataset = plane.job(job).dataset
    before = plane.client.get(f"/v1/datasets/{dataset}").json()
    assert (before["rows"], before["manifest"]) == (None, None)
    plane.run_to_end(job)
    after = plane.client.get(f"/v1/datasets/{dataset}").json()
    assert after["rows"] == 16
    assert len(after["manifest"]["shards"][0]["sha256"]) == 64
    assert after["shards"] == before["shards"]


def test_a_finished_job_shows_its_times(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.run_to_end(job)
    body = plane.client.get(f"/v1/jobs/{job}").json()
    times = [body[f"{event}_at"] for event in ("created", "started", "finished")]
    assert times == sorted(times)
    assert body["version"] == 1


def test_the_live_version_is_shown(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset())
    live = plane.client.get("/v1/models/scenes/live").json()
    assert live == {"version": 1, "generation": 1}
    model = plane.client.get("/v1/models/scenes").json()
    assert (model["live_version"], model["head_version"]) == (1, 1)
