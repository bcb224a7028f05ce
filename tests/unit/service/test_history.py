"""Reading: lists in pages, versions with their measurements, capacity, summaries, phases of a job."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from cmcl.contract.api.jobs import JobState
from cmcl.contract.capacity import forecast
from cmcl.contract.job import Failure, Phase
from cmcl.storage import layout
from cmcl.storage.running import mark_ended
from service.launchers.port import LaunchState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.measured import publish_measured, write_measured
from tests.fakes.trainer import report_progress, train

VERSIONS, CAPACITY = "/v1/models/scenes/versions", "/v1/models/scenes/capacity"
HISTORY = f"{VERSIONS}?by_dataset=true"
MASKED = {"policy": "preserve"}


def _get(plane: ControlPlane, path: str) -> Any:
    response = plane.client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ControlPlane, list[str]]]:
    """A control plane whose model has learned three datasets, and their ids; for tests that read."""
    plane = ControlPlane(tmp_path_factory.mktemp("grown"))
    plane.create_model()
    yield plane, _learn_three(plane)
    plane.close()


def _learn_three(plane: ControlPlane) -> list[str]:
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
    return [one, two, three]


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


def test_the_history_reads_no_manifest(plane: ControlPlane) -> None:
    _learn_three(plane)
    before = [_get(plane, path) for path in (HISTORY, CAPACITY)]
    with plane.context.database.write() as connection:
        connection.exec_driver_sql("UPDATE versions SET manifest = '{}'")
    assert [_get(plane, path) for path in (HISTORY, CAPACITY)] == before


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


@pytest.mark.parametrize(
    ("spec", "words"),
    [({"policy": "improve"}, "solves all heads"), ({"method": "vanilla"}, "vanilla")],
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
def learned_plane(three: ControlPlane) -> ControlPlane:
    """A control plane with four models, one of which has three versions."""
    for name in ("one", "two", "three"):
        three.create_model(f"model-{name}")
    return three


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


def _summary(plane: ControlPlane, model: str = "scenes") -> Any:
    response = plane.client.get(f"/v1/models/{model}/summary")
    assert response.status_code == 200, response.text
    return response.json()


def test_the_newest_and_the_live_version_are_shown(plane: ControlPlane) -> None:
    job = plane.post_dataset("one")
    write_measured(plane, job, recalls={"one": 0.8}, free={"image": 0.6})
    plane.run_to_end(job)
    job = plane.post_dataset("two")
    recalls = {"one": 0.7, "two": 0.5}
    write_measured(plane, job, recalls, drifts={"one": 0.25}, free={"image": 0.5})
    plane.run_to_end(job)
    plane.client.put("/v1/models/scenes/live", json={"version": 1})
    found = _summary(plane)
    assert (found["live_version"], found["live_generation"]) == (1, 3)
    newest = found["newest"]
    assert (newest["version"], newest["dataset_name"]) == (2, "two")
    assert (newest["max_drift"], newest["free_share"]) == (0.25, {"image": 0.5})
    assert newest["mean_recall"] == pytest.approx(0.6)
    ended = found["last_ended"]
    assert (ended["job"], ended["state"], ended["dataset_name"]) == (job, "published", "two")


def test_jobs_are_counted_by_what_they_wait_for(plane: ControlPlane) -> None:
    jobs = [plane.post_dataset(f"set-{number}") for number in range(4)]
    plane.tick_to(jobs[0], JobState.RUNNING)
    report_progress(plane.store, jobs[0], 1, "training", 5, {"loss": 0.5})
    plane.tick()
    found = _summary(plane)
    assert found["jobs"] == {"waiting": 3, "running": 1, "held": 0}
    current = found["current"]
    assert (current["job"], current["state"], current["version"]) == (jobs[0], "running", 1)
    assert current["progress"]["loss"] == 0.5


def test_a_dry_run_is_not_what_the_model_waits_for(plane: ControlPlane) -> None:
    plane.post_dataset("tried", dry_run=True)
    job = plane.post_dataset("learned")
    found = _summary(plane)
    assert found["jobs"]["waiting"] == 2
    assert found["current"]["job"] == job


def test_an_overview_lists_models_by_name_in_pages(plane: ControlPlane) -> None:
    for name in ("apples", "trees"):
        plane.create_model(name)
        plane.post_dataset("one", name)
    first = plane.client.get("/v1/overview?limit=2").json()
    assert [each["name"] for each in first["items"]] == ["apples", "scenes"]
    second = plane.client.get(f"/v1/overview?limit=2&cursor={first['next_cursor']}").json()
    assert [each["name"] for each in second["items"]] == ["trees"]
    assert second["items"][0] == _summary(plane, "trees")
    newest_first = plane.client.get("/v1/overview?order=desc").json()["items"]
    assert [each["name"] for each in newest_first] == ["trees", "scenes", "apples"]


def test_an_overview_takes_as_many_queries_for_many_models_as_for_one(plane: ControlPlane) -> None:
    plane.post_dataset("one")

    def queries() -> int:
        statements: list[str] = []

        def note(*arguments: Any) -> None:
            statements.append(arguments[2])

        engine = plane.context.database.engine
        event.listen(engine, "before_cursor_execute", note)
        assert plane.client.get("/v1/overview").status_code == 200
        event.remove(engine, "before_cursor_execute", note)
        return sum(statement.startswith("SELECT") for statement in statements)

    few = queries()
    for number in range(5):
        plane.create_model(f"model-{number}")
        plane.post_dataset("one", f"model-{number}")
    assert queries() == few


def _phases(plane: ControlPlane, job: str) -> dict[str, Any]:
    response = plane.client.get(f"/v1/jobs/{job}/phases")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert found["seconds"] == pytest.approx(sum(each["seconds"] for each in found["phases"]))
    return found


def _named(found: dict[str, Any]) -> dict[str, float]:
    return {each["phase"]: each["seconds"] for each in found["phases"]}


def _present(found: dict[str, Any]) -> list[str]:
    return [each["phase"] for each in found["phases"] if each["running"]]


def _report(plane: ControlPlane, job: str, phase: Phase, seconds: dict[Phase, float]) -> None:
    """Show progress now, and let the control plane see it."""
    figures: Any = {"seconds": seconds, "at": plane.clock()}
    report_progress(plane.store, job, plane.job(job).attempt, phase, figures=figures)
    plane.tick()


def test_the_phases_of_a_published_job_add_up_to_its_time(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    submitted = plane.clock()
    plane.clock.advance(9)
    _report(plane, job, "training", {"reading": 2.0, "training": 4.0})
    train(plane.store, job, 1)
    _report(plane, job, "done", {"reading": 2.0, "training": 5.0, "writing": 0.5})
    plane.tick_to(job, JobState.PUBLISHED)
    plane.tick(3)
    found, (version,) = _phases(plane, job), plane.versions()
    assert _present(found) == []
    assert list(_named(found)) == [
        *("queued", "preparing", "prepared", "submitting"),
        *("waiting", "reading", "training", "writing", "done"),
        *("gating", "storing"),
    ]
    assert version.stored_at is not None
    whole = version.stored_at - plane.job(job).created_at
    assert found["seconds"] == pytest.approx(whole.total_seconds())
    named = _named(found)
    assert (named["reading"], named["training"], named["writing"]) == (2.0, 5.0, 0.5)
    # The last report was made ten seconds after the submission and a tick, and states 7.5 seconds.
    waited = (plane.clock() - submitted).total_seconds() - 7.5
    assert 0 < named["waiting"] < waited


def test_the_present_phase_of_a_running_job_goes_on(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    assert _present(_phases(plane, job)) == ["queued"]
    plane.tick_to(job, JobState.RUNNING)
    plane.tick()
    assert _present(_phases(plane, job)) == ["waiting"]
    plane.clock.advance(5)
    _report(plane, job, "training", {"reading": 2.0, "training": 1.0})
    before = _phases(plane, job)
    plane.clock.advance(3)
    after = _phases(plane, job)
    assert _present(after) == ["training"]
    assert _named(after)["training"] == pytest.approx(_named(before)["training"] + 3)
    assert _named(after)["reading"] == 2.0


@pytest.mark.parametrize("off", [-3600, 3600])
def test_a_clock_of_the_ranks_that_is_wrong_changes_no_sum(plane: ControlPlane, off: int) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.clock.advance(9)
    figures: Any = {"seconds": {"training": 4.0}, "at": plane.clock() + timedelta(seconds=off)}
    report_progress(plane.store, job, 1, "training", figures=figures)
    plane.tick()
    found = _phases(plane, job)
    passed = (plane.clock() - plane.job(job).created_at).total_seconds()
    assert found["seconds"] == pytest.approx(passed)
    assert all(each["seconds"] >= 0 for each in found["phases"])


def test_a_lost_attempt_is_one_phase_and_the_next_one_has_its_own(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    _report(plane, job, "training", {"training": 1.0})
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "out of memory")
    plane.tick_to(job, JobState.PREPARED)
    plane.tick_to(job, JobState.RUNNING)
    _report(plane, job, "reading", {"reading": 1.0})
    names = [each["phase"] for each in _phases(plane, job)["phases"]]
    assert names[4:] == ["running", "prepared", "submitting", "waiting", "reading"]


def test_a_retried_job_begins_anew(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    failure = Failure(reason="training_failed", message="on purpose")
    plane.store.put(layout.run_failure(job, 1), failure.model_dump_json().encode())
    mark_ended(plane.store, job, 1)
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "on purpose")
    plane.tick_to(job, JobState.FAILED)
    assert _present(_phases(plane, job)) == []
    plane.clock.advance(1000)
    assert plane.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    found = _phases(plane, job)
    assert (_present(found), found["seconds"]) == (["queued"], 0.0)
