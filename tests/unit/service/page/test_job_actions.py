"""Cancel, retry, approve, reject and seal on the page."""

import html
import re

import httpx
import pytest

from service.states import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train
from tests.unit.service.page.browser import Browser

HOSTILE = "<script>alert(1)</script> \"'> \N{RIGHT-TO-LEFT OVERRIDE}abc \N{PILE OF POO} {{ 7 * 7 }}"


@pytest.fixture
def person(plane: ControlPlane) -> Browser:
    """A browser at a control plane without keys, with one model."""
    return Browser(plane)


def _held(plane: ControlPlane) -> str:
    plane.client.put("/v1/models/scenes/policy", json={"manual_approval": True})
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    plane.tick_to(job, JobState.HELD)
    return job


def seen_in(page: httpx.Response) -> str:
    """The revision in the form of a confirmation page."""
    found = re.search(r'name="seen" value="(\d+)"', page.text)
    assert found is not None, page.text
    return found[1]


def test_a_running_job_is_cancelled(plane: ControlPlane, person: Browser) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    assert f'href="../jobs/{job}/cancel"' in person.get(f"/ui/jobs/{job}").text
    page = person.get(f"/ui/jobs/{job}/cancel")
    assert "Cancel one" in page.text
    answer = person.post(f"/ui/jobs/{job}/cancel", data={"seen": seen_in(page)})
    after = person.follow(answer)
    assert "The job is being cancelled." in after.text
    assert f"jobs/{job}/cancel" not in after.text
    plane.tick(2)
    assert plane.job(job).state == JobState.CANCELLED
    again = person.get(f"/ui/jobs/{job}/cancel")
    assert "It is too late to cancel it" in again.text
    assert "<form method" not in again.text.partition("<main")[2]


def test_a_failed_job_is_retried(plane: ControlPlane, person: Browser) -> None:
    (plane.shards.parent / "shards").mkdir(exist_ok=True)
    broken = plane.shards / "broken.parquet"
    broken.write_bytes(b"not Parquet")
    job = plane.post_dataset(shards=[{"uri": broken.resolve().as_uri()}])
    plane.tick_to(job, JobState.FAILED)
    page = person.get(f"/ui/jobs/{job}/retry")
    assert "up to 3 more attempts are made" in page.text
    answer = person.post(f"/ui/jobs/{job}/retry", data={"seen": seen_in(page)})
    assert "The job is queued again." in person.follow(answer).text
    assert plane.job(job).state == JobState.QUEUED


def test_a_candidate_is_approved_with_a_reason(plane: ControlPlane, person: Browser) -> None:
    job = _held(plane)
    page = person.get(f"/ui/jobs/{job}/approve")
    assert "v1 becomes the newest version: the next dataset is learned from it" in page.text
    assert "It becomes live on all replicas within seconds" in page.text
    form = {"seen": seen_in(page), "reason": HOSTILE}
    after = person.follow(person.post(f"/ui/jobs/{job}/approve", data=form))
    assert "The candidate was approved." in after.text
    plane.tick(3)
    job_page = person.get(f"/ui/jobs/{job}").text
    for shown in (after.text, job_page):
        assert "<script>alert" not in shown
        assert html.escape(HOSTILE, quote=False)[:20] in shown
        assert "{{ 7 * 7 }}" in shown
    approval = plane.job(job).approval
    assert approval is not None
    assert (approval.decision, approval.reason) == ("approved", HOSTILE)
    assert plane.job(job).state == JobState.PUBLISHED


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("", "reason"),
        ("   ", "at least 1 character"),
        ("x" * 501, "at most 500 characters"),
        ("x" * 10_000, "at most 500 characters"),
        ("a\0b", "reason"),
    ],
    ids=["missing", "blank", "501", "10000", "nul"],
)
def test_a_decision_needs_a_reason(
    plane: ControlPlane, person: Browser, reason: str, message: str
) -> None:
    job = _held(plane)
    form = {"seen": str(plane.job(job).revision), "reason": reason}
    answer = person.post(f"/ui/jobs/{job}/reject", data=form)
    assert answer.status_code == 422
    assert message in answer.text
    assert plane.job(job).state == JobState.HELD


def test_a_decision_that_comes_too_late_shows_the_other_one(
    plane: ControlPlane, person: Browser
) -> None:
    job = _held(plane)
    seen = seen_in(person.get(f"/ui/jobs/{job}/reject"))
    form = {"seen": seen, "reason": "worse on rain"}
    assert person.post(f"/ui/jobs/{job}/reject", data=form).status_code == 303
    answer = person.post(f"/ui/jobs/{job}/approve", data={"seen": seen, "reason": "fine"})
    assert answer.status_code == 412
    assert "Nothing was done" in answer.text
    assert "worse on rain" in answer.text
    assert "This overrides the rejection." in answer.text
    assert plane.job(job).state == JobState.REJECTED
    again = person.post(
        f"/ui/jobs/{job}/approve", data={"seen": seen_in(answer), "reason": "fine after all"}
    )
    assert again.status_code == 303
    assert plane.job(job).state in (JobState.GATING, JobState.PUBLISHED)


def test_a_job_that_cannot_be_retried_is_shown_with_its_state(
    plane: ControlPlane, person: Browser
) -> None:
    job = plane.post_dataset()
    answer = person.post(f"/ui/jobs/{job}/retry", data={"seen": str(plane.job(job).revision)})
    assert answer.status_code == 409
    assert "only a failed job can be retried" in answer.text


def test_sealing_what_is_measured_only_says_that_nothing_is_learned(
    plane: ControlPlane, person: Browser
) -> None:
    body = plane.dataset_body("views", sealed=False, evaluate_only=True)
    dataset = plane.client.post("/v1/datasets", json=body).json()["dataset"]["id"]
    assert "It is measured once it is sealed" in person.get(f"/ui/datasets/{dataset}").text
    page = person.get(f"/ui/datasets/{dataset}/seal").text
    assert "measures the live version of scenes on the 1 file. Nothing is learned of them" in page
    assert "Seal and measure it" in page
    assert "no held-out rows" not in page


def test_an_open_dataset_is_sealed(plane: ControlPlane, person: Browser) -> None:
    body = plane.dataset_body("one", sealed=False)
    dataset = plane.client.post("/v1/datasets", json=body).json()["dataset"]["id"]
    assert f"datasets/{dataset}/seal" in person.get(f"/ui/datasets/{dataset}").text
    page = person.get(f"/ui/datasets/{dataset}/seal")
    assert "prepares the 1 file and learns them" in page.text
    assert "It has no held-out rows" in page.text
    shards = {"shards": [plane.shard("late")]}
    plane.client.post(f"/v1/datasets/{dataset}/shards", json=shards)
    late = person.post(f"/ui/datasets/{dataset}/seal", data={"seen": seen_in(page)})
    assert late.status_code == 412
    assert "has 2 files, not 1" in late.text
    answer = person.post(f"/ui/datasets/{dataset}/seal", data={"seen": seen_in(late)})
    after = person.follow(answer)
    assert "The dataset was sealed" in after.text
    assert f"datasets/{dataset}/seal" not in after.text
