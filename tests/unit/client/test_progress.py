"""How a job's progress is shown."""

import pytest

from cmcl.client import Json
from cmcl.progress import bar_fields

RUNNING: Json = {
    "state": "running",
    "progress": {"phase": "training", "updates_done": 3, "updates_total": 10, "loss": 0.12345},
}


@pytest.mark.parametrize("progress", [{}, {"progress": None}, {"progress": {}}])
def test_a_job_that_has_told_nothing_yet_has_a_bar_without_an_end(progress: Json) -> None:
    assert bar_fields({"state": "queued", **progress}) == {
        "total": None,
        "completed": 0,
        "state": "queued",
    }


def test_a_running_job_shows_phase_updates_and_loss() -> None:
    assert bar_fields(RUNNING) == {
        "total": 10,
        "completed": 3,
        "state": "running training loss 0.123",
    }


def test_a_published_job_has_a_full_bar_also_where_no_update_was_seen() -> None:
    assert bar_fields({**RUNNING, "state": "published"})["completed"] == 10


def test_a_failed_job_s_bar_stays_where_it_was() -> None:
    shown = bar_fields({**RUNNING, "state": "failed"})
    assert (shown["completed"], shown["state"]) == (3, "failed loss 0.123")
