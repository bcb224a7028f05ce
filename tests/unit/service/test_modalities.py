"""Modalities that are added to a model after it was created."""

from typing import Any

import httpx
import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import JobSpec
from cmcl.storage import layout
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table
from tests.fakes.trainer import leave_checkpoint, train

PLACE = "/v1/models/scenes/modalities/"
TEXT_DEPTH = {"first": "text", "second": "depth"}


def add(plane: ControlPlane, name: str = "depth", **body: Any) -> httpx.Response:
    return plane.client.put(f"{PLACE}{name}", json=body or {"width": 5})


def depths(plane: ControlPlane) -> list[dict[str, str]]:
    """A shard of pairs text, depth."""
    return [plane.shard("depths", feature_table(16, widths=(3, 5), prefix="d"))]


def test_a_dataset_may_use_a_modality_that_was_added(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset("one"))
    added = add(plane).json()
    assert added["modalities"]["depth"] == {"width": 5, "encoder": None}
    job = plane.post_dataset("two", pair=TEXT_DEPTH, shards=depths(plane))
    assert plane.run_to_end(job).version == 2
    first, second = (version.manifest.spec for version in plane.versions())
    assert set(second.modalities) - set(first.modalities) == {"depth"}
    (event,) = [
        each
        for each in plane.client.get("/v1/events?limit=200").json()["items"]
        if each["kind"] == "model.modality"
    ]
    assert event["details"]["modality"] == "depth"


def test_the_same_again_changes_nothing_and_another_width_is_refused(plane: ControlPlane) -> None:
    assert add(plane).json() == add(plane).json()
    refused = add(plane, width=6)
    assert refused.status_code == 409
    assert "has the modality 'depth' with width 5 and no encoder" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("depth", {"width": 0}, 422),
        ("depth", {"encoder": "none-of-that-name"}, 422),
        ("depth", {"encoder": None}, 422),
        ("Depth!", {"width": 4}, 422),
    ],
)
def test_a_modality_that_cannot_be_used_is_refused(
    plane: ControlPlane, name: str, body: dict[str, object], status: int
) -> None:
    assert plane.client.put(f"{PLACE}{name}", json=body).status_code == status


def test_an_attempt_that_runs_keeps_its_work(plane: ControlPlane) -> None:
    job = plane.post_dataset("one")
    running = plane.tick_to(job, JobState.RUNNING)
    checkpoint = leave_checkpoint(plane.store, job, running.attempt, 5)
    add(plane)
    plane.launcher.lose(str(running.submission_id))
    plane.tick(3)
    second = plane.tick_to(job, JobState.RUNNING)
    assert second.attempt == 2
    key = layout.run_spec(job, second.attempt)
    spec = JobSpec.model_validate_json(plane.store.read(key))
    assert spec.resume_from == checkpoint
    assert "depth" in spec.spec.modalities
    add(plane, "touch", width=2)
    train(plane.store, job, 2)
    plane.tick(4)
    assert plane.job(job).state == JobState.PUBLISHED
