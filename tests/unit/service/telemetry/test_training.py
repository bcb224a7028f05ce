"""Metrics of running attempts, by model; they end with the attempt."""

import math

import pytest

from cmcl.contract.job import Progress
from service.launchers.port import LaunchState
from service.states import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import FIGURES, report_progress
from tests.unit.service.telemetry.samples import report_running, shown

SHOWN = {
    "updates": "updates_done",
    "updates_planned": "updates_total",
    "rows": "rows_done",
    "rows_planned": "rows_total",
    **{
        name: name
        for name in (
            *("rows_per_second", "loss", "removed_share", "gradient_norm"),
            *("drift", "eta_seconds", "ranks", "resumed_at"),
        )
    },
}
SCENES = {"model": "scenes"}


def test_every_figure_of_an_attempt_is_shown(plane: ControlPlane) -> None:
    report_running(plane, plane.post_dataset())
    fields = {"updates_done": 3, "updates_total": 10, **FIGURES}
    values = {name: shown(plane, f"training_{name}", **SCENES) for name in SHOWN}
    assert values == {name: fields[field] for name, field in SHOWN.items()}
    assert shown(plane, "training_phase", phase="training", **SCENES) == 1


def test_no_figure_of_progress_is_missing() -> None:
    assert {"phase", "note", "at", *SHOWN.values()} == set(Progress.model_fields)


def test_a_phase_without_a_figure_has_no_series_of_it(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    report_running(plane, job)
    assert shown(plane, "training_loss", **SCENES) == FIGURES["loss"]
    report_progress(plane.store, job, 1, "certifying")
    plane.tick()
    plane.clock.advance(5)
    assert shown(plane, "training_loss", **SCENES) is None
    assert shown(plane, "training_rows", **SCENES) == 0
    assert shown(plane, "training_phase", phase="training", **SCENES) is None
    assert shown(plane, "training_phase", phase="certifying", **SCENES) == 1


@pytest.mark.parametrize("end", ["published", "lost"])
def test_the_series_of_an_attempt_vanish_with_it(plane: ControlPlane, end: str) -> None:
    job = plane.post_dataset()
    report_running(plane, job)
    assert shown(plane, "training_updates", **SCENES) == 3
    if end == "published":
        plane.run_to_end(job)
    else:
        plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "killed")
        plane.tick(5)
        assert (plane.job(job).state, plane.job(job).attempt) == (JobState.RUNNING, 2)
    plane.clock.advance(5)
    assert "cmcl_service_training_updates{" not in plane.client.get("/metrics").text


def test_a_figure_that_is_no_number_is_left_out(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    attempt = plane.tick_to(job, JobState.RUNNING).attempt
    figures = {"loss": math.nan, "gradient_norm": math.inf, "drift": 0.5}
    report_progress(plane.store, job, attempt, "training", 3, figures)
    plane.tick()
    plane.clock.advance(5)
    assert shown(plane, "training_loss", **SCENES) is None
    assert shown(plane, "training_gradient_norm", **SCENES) is None
    assert shown(plane, "training_drift", **SCENES) == 0.5


def test_each_model_shows_its_own(plane: ControlPlane) -> None:
    plane.create_model("sounds")
    for model in ("scenes", "sounds"):
        report_running(plane, plane.post_dataset(model=model))
    plane.create_model("idle")
    plane.post_dataset(model="idle")
    for model, updates in (("scenes", 3), ("sounds", 3), ("idle", None)):
        assert shown(plane, "training_updates", model=model) == updates
