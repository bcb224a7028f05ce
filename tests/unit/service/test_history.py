"""Measurements over the versions of a model, and the room that is left."""

from typing import Any

import pytest

from cmcl.contract.capacity import forecast
from tests.fakes.control_plane import ControlPlane
from tests.fakes.lost_database import rebuild, wreck
from tests.fakes.measured import publish_measured

VERSIONS, CAPACITY = "/v1/models/scenes/versions", "/v1/models/scenes/capacity"
HISTORY = f"{VERSIONS}?by_dataset=true"
MASKED = {"policy": "preserve"}


def _get(plane: ControlPlane, path: str) -> Any:
    response = plane.client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture
def grown(plane: ControlPlane) -> tuple[ControlPlane, list[str]]:
    """A control plane whose model has learned three datasets, and their ids."""
    one = publish_measured(plane, "one", recalls={"one": 0.8}, free={"image": 0.8, "text": 0.8})
    two = publish_measured(
        plane,
        "two",
        pair=("audio", "text"),
        recalls={"one": 0.7, "two": 0.6},
        losses={"one": (-0.9, -1.2)},
        free={"image": 0.75, "text": 0.4, "audio": 0.5},
    )
    three = publish_measured(
        plane,
        "three",
        drifts={"one": 0.2, "two": 0.3},
        losses={"one": (-0.8, None), "two": (-1.0, -1.1)},
        free={"image": 0.4, "text": 0.2, "audio": 0.45},
    )
    return plane, [one, two, three]


def test_each_version_has_its_measurements(grown: tuple[ControlPlane, list[str]]) -> None:
    plane, (one, two, three) = grown
    first, second, third = _get(plane, HISTORY)["items"]
    assert [each["version"] for each in (first, second, third)] == [1, 2, 3]
    assert [each["dataset"] for each in (first, second, third)] == [one, two, three]
    assert second["pair"] == {"first": "audio", "second": "text"}
    assert (first["max_drift"], third["max_drift"]) == (None, 0.3)
    assert second["mean_recall"] == pytest.approx(0.65)
    assert third["mean_recall"] is None
    assert third["free_share"] == {"image": 0.4, "text": 0.2, "audio": 0.45}
    of_first, of_second, of_third = (each["by_dataset"] for each in (first, second, third))
    assert (of_first["drift"], of_first["quality"]) == ({}, {})
    assert (of_second["recall"], of_second["recall_at_10"]) == ({one: 0.7, two: 0.6},) * 2
    assert of_third["drift"] == {one: 0.2, two: 0.3}
    assert (of_third["quality"], of_third["best"]) == ({one: -0.8, two: -1.0}, {two: -1.1})
    assert of_third["recall"] == {}


def test_measurements_of_datasets_can_be_left_out(grown: tuple[ControlPlane, list[str]]) -> None:
    plane, _ = grown
    whole = _get(plane, HISTORY)["items"]
    brief = _get(plane, VERSIONS)["items"]
    assert brief == [{**each, "by_dataset": None} for each in whole]


def test_measurements_have_six_digits(plane: ControlPlane) -> None:
    one = publish_measured(plane, "one", recalls={"one": 1 / 3})
    publish_measured(plane, "two", drifts={"one": 1234567.8}, recalls={"one": 2e-7 / 3})
    first, second = _get(plane, HISTORY)["items"]
    assert first["by_dataset"]["recall"] == {one: 0.333333}
    assert second["by_dataset"]["recall"] == {one: 6.66667e-08}
    assert second["by_dataset"]["drift"] == {one: 1234570.0}
    assert second["max_drift"] == 1234567.8


def test_the_history_comes_in_pages_of_both_orders(grown: tuple[ControlPlane, list[str]]) -> None:
    plane, _ = grown
    first = _get(plane, f"{HISTORY}&order=desc&limit=2")
    assert [each["version"] for each in first["items"]] == [3, 2]
    second = _get(plane, f"{HISTORY}&order=desc&limit=2&cursor={first['next_cursor']}")
    assert [each["version"] for each in second["items"]] == [1]
    assert second["next_cursor"] is None


@pytest.mark.parametrize(("every", "expected"), [(1, [3, 2, 1]), (2, [3, 1]), (3, [3]), (50, [3])])
def test_a_long_history_can_be_thinned(
    grown: tuple[ControlPlane, list[str]], every: int, expected: list[int]
) -> None:
    plane, _ = grown
    path = f"{HISTORY}&order=desc&limit=1&every={every}"
    found, following = [], ""
    while True:
        page = _get(plane, path + following)
        found += [each["version"] for each in page["items"]]
        if page["next_cursor"] is None:
            break
        following = f"&cursor={page['next_cursor']}"
    assert found == expected


def test_the_history_reads_no_manifest(grown: tuple[ControlPlane, list[str]]) -> None:
    plane, _ = grown
    before = [_get(plane, path) for path in (HISTORY, CAPACITY)]
    with plane.context.database.write() as connection:
        connection.exec_driver_sql("UPDATE versions SET manifest = '{}'")
    assert [_get(plane, path) for path in (HISTORY, CAPACITY)] == before


def test_the_history_survives_the_loss_of_the_database(
    grown: tuple[ControlPlane, list[str]],
) -> None:
    plane, _ = grown
    before = [_get(plane, path) for path in (HISTORY, CAPACITY, "/v1/models/scenes/summary")]
    plane.record()
    wreck(plane.context.database)
    rebuild(plane)
    after = [_get(plane, path) for path in (HISTORY, CAPACITY, "/v1/models/scenes/summary")]
    assert after == before


def test_a_branch_has_the_history_of_its_versions(grown: tuple[ControlPlane, list[str]]) -> None:
    plane, (one, two, _) = grown
    plane.client.post("/v1/models/scenes/branch", json={"name": "branch", "version": 2})
    found = _get(plane, "/v1/models/branch/versions?by_dataset=true")["items"]
    assert [each["dataset"] for each in found] == [one, two]
    original = _get(plane, HISTORY)["items"][:2]
    same = ("by_dataset", "free_share", "pair", "max_drift", "mean_recall")
    assert [[each[name] for name in same] for each in found] == [
        [each[name] for name in same] for each in original
    ]


def test_capacity_is_forecast_from_the_datasets_of_each_modality(plane: ControlPlane) -> None:
    plane.create_model("masked", **MASKED)
    publish_measured(plane, "one", "masked", free={"image": 0.8, "text": 0.8})
    audio = {"image": 0.79, "text": 0.4, "audio": 0.5}
    publish_measured(plane, "two", "masked", pair=("audio", "text"), free=audio)
    publish_measured(plane, "three", "masked", free={"image": 0.4, "text": 0.2, "audio": 0.5})
    found = _get(plane, "/v1/models/masked/capacity")
    assert (found["model"], found["version"], found["full_below"]) == ("masked", 3, 0.1)
    assert found["remark"] is None
    text = found["modalities"]["text"]
    # Each dataset of three took half of what was free, and 0.2 is one half away from 0.1.
    assert (text["datasets_left"], text["taken_per_dataset"]) == (1, pytest.approx(0.5))
    assert text["now"]["free_share"] == 0.2
    image, sound = found["modalities"]["image"], found["modalities"]["audio"]
    # The second version moved the share of images a little, but had none.
    assert image["datasets_left"] == forecast([0.8, 0.4]).datasets_left == 2
    assert [(each["version"], each["learned"]) for each in image["history"]] == [
        (1, True),
        (2, False),
        (3, True),
    ]
    assert (sound["datasets_left"], sound["taken_per_dataset"]) == (None, None)
    assert [each["version"] for each in sound["history"]] == [2, 3]


def test_the_forecast_looks_beyond_the_versions_that_are_shown(plane: ControlPlane) -> None:
    plane.create_model("masked", **MASKED)
    shares = [0.9, 0.6, 0.4]
    for number, share in enumerate(shares):
        publish_measured(plane, f"images-{number}", "masked", free={"image": share, "text": share})
    publish_measured(
        plane, "sounds", "masked", pair=("audio", "text"), free={"image": 0.4, "text": 0.3}
    )
    found = _get(plane, "/v1/models/masked/capacity?limit=1")
    image = found["modalities"]["image"]
    assert [each["version"] for each in image["history"]] == [4]
    assert image["datasets_left"] == forecast(shares).datasets_left
    assert image == {
        **_get(plane, "/v1/models/masked/capacity")["modalities"]["image"],
        "history": image["history"],
    }


def test_capacity_before_the_first_version_is_empty(plane: ControlPlane) -> None:
    plane.create_model("masked", **MASKED)
    found = _get(plane, "/v1/models/masked/capacity")
    assert (found["version"], found["modalities"]) == (None, {})
    assert _get(plane, "/v1/models/masked/versions")["items"] == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"policy": "improve"}, "solves all heads"),
        ({"method": "vanilla"}, "vanilla"),
    ],
)
def test_a_model_without_a_mask_says_so(
    plane: ControlPlane, spec: dict[str, object], words: str
) -> None:
    plane.create_model("other", **spec)
    assert words in _get(plane, "/v1/models/other/capacity")["remark"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("versions?limit=201", "limit"),
        ("versions?order=new", "order"),
        ("versions?cursor=x", "cursor"),
        ("versions?by_dataset=1", "by_dataset"),
        ("versions?by_dataset=", "by_dataset"),
        ("capacity?limit=0", "limit"),
        ("capacity?limit=1001", "limit"),
    ],
)
def test_bad_parameters_are_named(plane: ControlPlane, query: str, field: str) -> None:
    response = plane.client.get(f"/v1/models/scenes/{query}")
    assert response.status_code == 422
    assert [each["field"] for each in response.json()["errors"]] == [field]


def test_the_history_of_no_model_is_not_found(plane: ControlPlane) -> None:
    for name in ("versions", "capacity", "summary"):
        assert plane.client.get(f"/v1/models/none/{name}").status_code == 404
