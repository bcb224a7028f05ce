"""How a job's progress is shown."""

from datetime import UTC, datetime

import pytest

from cmcl.progress import bar_fields
from cmcl.types import Job, JobProgress

AT = datetime(2026, 11, 24, tzinfo=UTC)
TRAINING = JobProgress(phase="training", updates_done=3, updates_total=10, loss=0.12345)


def job(state: str, progress: JobProgress | None = TRAINING) -> Job:
    return Job(
        id="job-1",
        model="m",
        dataset="ds-1",
        state=state,
        attempt=1,
        created_at=AT,
        state_changed_at=AT,
        progress=progress,
    )


def test_a_job_that_has_told_nothing_yet_has_a_bar_without_an_end() -> None:
    shown = bar_fields(job("queued", None))
    assert shown == {"total": None, "completed": 0, "state": "queued"}


def test_an_attempt_that_only_began_has_a_bar_without_an_end() -> None:
    shown = bar_fields(job("running", JobProgress(phase="starting")))
    assert shown == {"total": None, "completed": 0, "state": "running starting"}


def test_a_running_job_shows_phase_updates_and_loss() -> None:
    assert bar_fields(job("running")) == {
        "total": 10,
        "completed": 3,
        "state": "running training loss 0.123",
    }


@pytest.mark.parametrize("progress", [TRAINING, None])
def test_a_published_job_has_a_full_bar_also_where_no_update_was_seen(
    progress: JobProgress | None,
) -> None:
    shown = bar_fields(job("published", progress))
    assert shown["completed"] == (shown["total"] or 0)


def test_a_failed_job_s_bar_stays_where_it_was() -> None:
    shown = bar_fields(job("failed"))
    assert (shown["completed"], shown["state"]) == (3, "failed loss 0.123")
