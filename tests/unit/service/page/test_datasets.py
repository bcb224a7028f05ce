"""The state of a dataset in lists, on its page, and in the API."""

import pytest
from sqlalchemy import update

from cmcl.contract.api.jobs import JobState
from cmcl.contract.dataset import RejectedRow
from cmcl.storage.object_store import ObjectStore
from service.database.tables import jobs
from tests.fakes.control_plane import ControlPlane
from tests.fakes.preparer import fail, requests_in
from tests.unit.service.page.browser import Browser, rows_of, text_of
from workers.prepare.dataset import write_rejected

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


def rejected(count: int) -> list[RejectedRow]:
    return [
        RejectedRow(
            id=f"r{at}", file="upload:up-1", row=at, place=f"m.csv line {at + 2}", reason="cut off"
        )
        for at in range(count)
    ]


def refused(plane: ControlPlane, count: int) -> str:
    """A dataset that is refused because of so many rows."""
    rows = rejected(count)

    def refuse(store: ObjectStore) -> None:
        for request in requests_in(store):
            write_rejected(store, request.dataset, rows)
            known = {"rejected_rows": count, "rejected": rows[:20]}
            fail(store, request, "invalid_dataset", "too many bad rows", **known)

    plane.preparer = refuse
    job = plane.post_dataset()
    plane.run_to_end(job)
    return job


@pytest.mark.parametrize(("count", "has_more"), [(20, False), (25, True)])
def test_all_rows_of_a_refused_dataset_are_counted_and_listed(
    plane: ControlPlane, count: int, has_more: bool
) -> None:
    job, browser = refused(plane, count), Browser(plane)
    dataset = plane.dataset_of(job).id
    assert plane.client.get(f"/v1/datasets/{dataset}").json()["rejected"]["rows"] == count
    for path in (f"datasets/{dataset}", f"jobs/{job}"):
        page = browser.get(f"/ui/{path}").text
        assert f"{count} rows that cannot be used" in text_of(page)
        assert (f"datasets/{dataset}/rejected-rows" in page) == has_more
    listed = browser.get(f"/ui/datasets/{dataset}/rejected-rows").text
    assert text_of(listed).count("m.csv line") == count
    assert "The dataset was refused: nothing of it is learned." in text_of(listed)
    assert "learned." not in text_of(listed).replace("nothing of it is learned.", "")


def test_a_page_of_rows_says_what_became_of_the_others(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.run_to_end(job)
    dataset, browser = plane.dataset_of(job).id, Browser(plane)
    nothing = text_of(browser.get(f"/ui/datasets/{dataset}/rejected-rows").text)
    assert "No row left out" in nothing
    assert "The other rows" not in nothing
