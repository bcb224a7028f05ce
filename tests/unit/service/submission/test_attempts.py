"""Arguments of the launcher for an attempt: its command, its labels, its priority."""

from typing import Any

import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import submission_id
from service.launchers.port import Submission
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.submission.conftest import MakePlane

GATE = "/v1/models/scenes/gate"


def _submitted(plane: ControlPlane) -> Submission:
    """The first attempt of a new dataset."""
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    return plane.launcher.submissions[f"{job}-a1"]


def _options(submission: Submission) -> dict[str, str]:
    words = list(submission.command)
    return {word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("--")}


def test_labels_name_the_owner(make_plane: MakePlane) -> None:
    plane = make_plane()
    submission = _submitted(plane)
    job = submission.id.removesuffix("-a1")
    assert submission.labels == {
        "cmcl/job": job,
        "cmcl/attempt": "1",
        "cmcl/kind": "learn",
        "cmcl/model": "scenes",
        "cmcl/dataset": plane.job(job).dataset,
        "cmcl/owner": "default",
        "cmcl/priority": "normal",
    }


@pytest.mark.parametrize(
    ("priority", "settings", "submitted"),
    [
        ("low", {}, "low"),
        ("high", {}, "normal"),
        ("high", {"owners": {"default": {"high_priority": True}}}, "high"),
        ("high", {"kuberay_queue": "of-{owner}"}, "high"),
        ("high", {"owners": {"default": {"queue": "mine"}}}, "high"),
    ],
)
def test_a_high_priority_ranks_in_a_queue_of_several_owners_only_if_it_is_granted(
    make_plane: MakePlane, priority: str, settings: dict[str, Any], submitted: str
) -> None:
    plane = make_plane(**settings)
    assert plane.client.put(GATE, json={"priority": priority}).status_code == 200
    submission = _submitted(plane)
    assert (submission.priority, submission.labels["cmcl/priority"]) == (submitted, priority)


@pytest.mark.parametrize(
    ("settings", "queue"),
    [
        ({}, ""),
        ({"kuberay_queue": "training"}, "training"),
        ({"kuberay_queue": "of-{owner}"}, "of-default"),
        ({"kuberay_queue": "of-{owner}", "owners": {"default": {"queue": "mine"}}}, "mine"),
    ],
)
def test_an_attempt_waits_in_the_queue_of_its_owner(
    make_plane: MakePlane, settings: dict[str, Any], queue: str
) -> None:
    submission = _submitted(make_plane(**settings))
    assert submission.queue == queue


def test_an_unknown_priority_is_rejected_with_a_message(plane: ControlPlane) -> None:
    answer = plane.client.put(GATE, json={"priority": "urgent"})
    assert answer.status_code == 422
    assert "'low', 'normal' or 'high'" in answer.text


def test_an_elastic_attempt_says_how_few_do(make_plane: MakePlane) -> None:
    submission = _submitted(make_plane(ranks=4, min_ranks=2, gpus_per_rank=0.5))
    assert (submission.ranks, submission.min_ranks, submission.gpus_per_rank) == (4, 2, 0.5)
    assert _options(submission)["--min-ranks"] == "2"
    request = submission.attempt
    assert request is not None
    assert (request.ranks, request.min_ranks, request.gpus_per_rank) == (4, 2, 0.5)


def test_a_fixed_one_needs_them_all(make_plane: MakePlane) -> None:
    submission = _submitted(make_plane(ranks=4))
    assert (submission.ranks, submission.min_ranks) == (4, 4)
    assert "--min-ranks" not in submission.command


def test_a_request_for_the_driver_names_the_attempt_and_its_owner(make_plane: MakePlane) -> None:
    submission = _submitted(make_plane(ranks_idle_seconds=60))
    request = submission.attempt
    assert request is not None
    assert submission_id(request.job, request.attempt) == submission.id
    assert (request.owner, request.idle_seconds) == ("default", 60)
