"""The state of a dataset in lists, on its page, and in the API."""

import pytest
from sqlalchemy import update

from service.database.tables import jobs
from service.states import JobState
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.page.browser import Browser, rows_of, text_of

WITHOUT_A_VERSION = (JobState.FAILED, JobState.CANCELLED, JobState.REJECTED)


def end(plane: ControlPlane, state: JobState) -> str:
    """The id of a dataset whose job ended before it was prepared."""
    job = plane.post_dataset()
    with plane.context.database.write() as connection:
        ended = {"state": state, "finished_at": plane.clock()}
        connection.execute(update(jobs).where(jobs.c.id == job).values(ended))
    return plane.dataset_of(job).id


@pytest.mark.parametrize("state", WITHOUT_A_VERSION)
def test_a_dataset_whose_job_ended_without_a_version_waits_for_nothing(
    plane: ControlPlane, state: JobState
) -> None:
    dataset, browser = end(plane, state), Browser(plane)
    ((*_, listed, _, _),) = rows_of(browser.get("/ui/datasets").text, "live_datasets")
    assert listed == state
    for path in ("models/scenes", f"datasets/{dataset}"):
        shown = text_of(browser.get(f"/ui/{path}").text)
        assert state in shown
        assert "waiting or preparing" not in shown


def test_the_state_of_its_job_is_part_of_a_dataset(plane: ControlPlane) -> None:
    body = plane.dataset_body("open", sealed=False)
    opened = plane.client.post("/v1/datasets", json=body).json()["dataset"]
    assert opened["job_state"] is None
    posted = plane.client.post("/v1/datasets", json=plane.dataset_body("one")).json()
    assert posted["dataset"]["job_state"] == "queued"
    plane.run_to_end(posted["job"]["id"])
    found = plane.client.get(f"/v1/datasets/{posted['dataset']['id']}").json()
    assert found["job_state"] == "published"
    listed = plane.client.get("/v1/datasets").json()["items"]
    assert [each["job_state"] for each in listed] == [None, "published"]
