"""Models at a glance: what is live, learned, held and failed."""

from typing import Any

import pytest
from sqlalchemy import event

from cmcl.contract.api.jobs import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import table_with_nan
from tests.fakes.measured import write_measured
from tests.fakes.trainer import report_progress


def _summary(plane: ControlPlane, model: str = "scenes") -> Any:
    response = plane.client.get(f"/v1/models/{model}/summary")
    assert response.status_code == 200, response.text
    return response.json()


def test_a_new_model_has_nothing_yet(plane: ControlPlane) -> None:
    found = _summary(plane)
    assert (found["name"], found["method"], found["policy"]) == ("scenes", None, "improve")
    empty = ("live_version", "newest", "current", "last_ended", "branched_from")
    assert [found[name] for name in empty] == [None] * 5
    assert found["jobs"] == {"waiting": 0, "running": 0, "held": 0}


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


def test_a_held_job_is_the_current_one(plane: ControlPlane) -> None:
    plane.client.put("/v1/models/scenes/gate", json={"manual_approval": True, "max_drift": 0.4})
    job, waiting = plane.post_dataset("one"), plane.post_dataset("two")
    write_measured(plane, job)
    plane.tick_to(job, JobState.HELD)
    found = _summary(plane)
    assert found["jobs"] == {"waiting": 1, "running": 0, "held": 1}
    assert (found["current"]["job"], found["current"]["state"]) == (job, "held")
    assert found["drift_bound"] == 0.4
    plane.client.post(f"/v1/jobs/{job}/reject", json={"reason": "worse"})
    found = _summary(plane)
    assert found["current"]["job"] == waiting
    assert (found["last_ended"]["job"], found["last_ended"]["reason"]) == (job, "rejected_by_hand")


def test_a_failed_job_is_shown_with_its_reason(plane: ControlPlane) -> None:
    job = plane.post_dataset("bad", shards=[plane.shard("bad", table_with_nan(16))])
    plane.run_to_end(job)
    ended = _summary(plane)["last_ended"]
    assert (ended["job"], ended["state"], ended["reason"]) == (job, "failed", "invalid_dataset")
    assert ended["message"]


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
