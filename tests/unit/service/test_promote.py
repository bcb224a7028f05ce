"""The live pointer: generations only grow, and live.json follows the database."""

import pytest

from cmcl.contract.version import LivePointer
from cmcl.storage import layout
from cmcl.storage.versions import write_live
from tests.fakes.control_plane import ControlPlane


@pytest.fixture
def two_versions(plane: ControlPlane) -> ControlPlane:
    for name in ("one", "two"):
        plane.run_to_end(plane.post_dataset(name))
    return plane


def _choose(plane: ControlPlane, version: int) -> dict[str, int]:
    response = plane.client.put("/v1/models/scenes/live", json={"version": version})
    assert response.status_code == 200, response.text
    answer: dict[str, int] = response.json()
    return answer


def test_roll_back_is_a_new_generation(two_versions: ControlPlane) -> None:
    assert _choose(two_versions, 1) == {"version": 1, "generation": 3}
    two_versions.tick()
    assert two_versions.answering() == (3, 1)


def test_choosing_the_live_version_changes_nothing(two_versions: ControlPlane) -> None:
    assert _choose(two_versions, 2) == {"version": 2, "generation": 2}
    items = two_versions.client.get("/v1/models/scenes/promotions").json()["items"]
    assert len(items) == 2


def test_a_new_version_goes_live_after_a_roll_back(two_versions: ControlPlane) -> None:
    _choose(two_versions, 1)
    two_versions.run_to_end(two_versions.post_dataset("three"))
    assert two_versions.answering() == (4, 3)


def test_the_history_has_actor_and_reason(two_versions: ControlPlane) -> None:
    body = {"version": 1, "reason": "worse on emoji"}
    two_versions.client.put("/v1/models/scenes/live", json=body)
    items = two_versions.client.get("/v1/models/scenes/promotions").json()["items"]
    found = [(i["generation"], i["version"], i["previous"], i["actor"]) for i in items]
    assert found == [(1, 1, None, "reconciler"), (2, 2, 1, "reconciler"), (3, 1, 2, "local")]
    assert items[2]["reason"] == "worse on emoji"


def test_an_unknown_version_is_not_found(two_versions: ControlPlane) -> None:
    response = two_versions.client.put("/v1/models/scenes/live", json={"version": 9})
    assert response.status_code == 404
    assert "permitted: 1 to 2" in response.json()["errors"][0]["message"]


def test_a_version_without_its_files_cannot_go_live(two_versions: ControlPlane) -> None:
    with two_versions.context.database.write() as connection:
        connection.exec_driver_sql("UPDATE versions SET stored_at = NULL WHERE number = 1")
    response = two_versions.client.put("/v1/models/scenes/live", json={"version": 1})
    assert response.status_code == 409


@pytest.mark.parametrize("damage", ["missing", "garbled", "behind"])
def test_a_restart_repairs_the_pointer(two_versions: ControlPlane, damage: str) -> None:
    store, key = two_versions.store, layout.live_pointer("scenes")
    if damage == "missing":
        store.delete(key)
    elif damage == "garbled":
        store.put(key, b"{}")
    else:
        write_live(store, "scenes", LivePointer(generation=1, version=1))
    successor = ControlPlane(two_versions.folder, two_versions.launcher, two_versions.clock)
    successor.tick(2)
    assert two_versions.answering() == (2, 2)
    successor.close()


def test_a_roll_back_outlasts_an_outage_of_the_store(two_versions: ControlPlane) -> None:
    two_versions.store.broken = "live.json"
    _choose(two_versions, 1)
    two_versions.tick(3)
    two_versions.store.broken = None
    two_versions.clock.advance(30)
    two_versions.tick()
    assert two_versions.answering() == (3, 1)


def test_before_the_first_version_none_is_live(plane: ControlPlane) -> None:
    response = plane.client.get("/v1/models/scenes/live")
    assert response.status_code == 404
    assert "no live version yet" in response.json()["detail"]


def test_the_seconds_from_post_to_live_are_measured(two_versions: ControlPlane) -> None:
    registry = two_versions.context.metrics.registry
    assert registry.get_sample_value("cmcl_service_post_to_live_seconds_count") == 2
    seconds = registry.get_sample_value("cmcl_service_post_to_live_seconds_sum")
    assert seconds is not None
    assert seconds > 0
