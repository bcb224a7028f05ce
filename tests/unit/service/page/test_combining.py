"""The pages of jobs and versions that unlearn or merge: what they are, and no link where there is no dataset."""

import pytest

from cmcl.contract.api.jobs import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.measured import publish_measured, write_measured
from tests.fakes.trainer import train
from tests.unit.service.page.browser import Browser, rows_of, text_of
from tests.unit.service.test_unlearning import learn, unlearn, unlearned


@pytest.fixture
def changed(plane: ControlPlane) -> ControlPlane:
    """`scenes` has learned one, two and three and unlearned two; its branch has merged that, and holds an unlearning."""
    _, second, third = learn(plane, "one", "two", "three")
    plane.client.post("/v1/models/scenes/branch", json={"name": "branch", "version": 1})
    plane.tick(3)
    unlearned(plane, second)
    merge = plane.client.post("/v1/models/branch/merge", json={"from": "scenes@4"}).json()["id"]
    assert plane.run_to_end(merge).state == JobState.PUBLISHED
    plane.client.put("/v1/models/branch/gate", json={"manual_approval": True})
    job = unlearn(plane, third, model="branch").json()["id"]
    train(plane.store, job, plane.tick_to(job, JobState.RUNNING).attempt)
    plane.tick_to(job, JobState.HELD)
    return plane


def test_they_say_what_they_are(changed: ControlPlane) -> None:
    reader = Browser(changed)

    def opened(path: str) -> str:
        response = reader.get(path)
        assert response.status_code == 200, path
        return response.text

    merge, held = changed.client.get("/v1/jobs?model=branch").json()["items"]
    (unlearning,) = [
        job
        for job in changed.client.get("/v1/jobs?model=scenes").json()["items"]
        if job["kind"] != "learn"
    ]
    page = opened(f"/ui/jobs/{unlearning['id']}")
    assert "unlearns" in text_of(page)
    assert "Unlearned two" in text_of(page)
    page = opened(f"/ui/jobs/{merge['id']}")
    assert "Merged scenes@4" in text_of(page)
    assert "datasets/None" not in page
    listed = text_of(opened("/ui/jobs"))
    assert listed.count("unlearns") == 2
    assert listed.count("merges") == 1
    page = opened("/ui/models/scenes/versions/4")
    assert "v4 unlearned two: it equals, to rounding, a model that never saw it." in text_of(page)
    assert '<del><bdi class="text">two</bdi></del>' in page
    assert "Unlearned two" in text_of(page)
    assert "datasets/None" not in page
    page = opened("/ui/models/branch/versions/2")
    assert "learned three" in text_of(page)
    assert "Merged scenes@4" in text_of(page)
    page = opened(f"/ui/jobs/{held['id']}/candidate")
    assert "Unlearned three" in text_of(page)
    assert "It unlearned three" in text_of(page)
    for path in (
        f"/ui/jobs/{held['id']}",
        "/ui/models/scenes",
        "/ui/models/branch",
        "/ui/models/scenes/memory",
        "/ui/models/branch/memory",
        "/ui/",
    ):
        assert "None" not in text_of(opened(path))


def test_the_matrix_keeps_the_recall_that_an_unlearned_dataset_had(plane: ControlPlane) -> None:
    publish_measured(plane, "one", recalls={"one": 0.8})
    dataset = publish_measured(plane, "two", recalls={"one": 0.7, "two": 0.5})
    publish_measured(plane, "three", recalls={"one": 0.7, "two": 0.25, "three": 0.9})
    job = unlearn(plane, dataset).json()["id"]
    write_measured(plane, job, recalls={"one": 0.75, "three": 0.9})
    plane.run_to_end(job)
    reader = Browser(plane)
    page = reader.get("/ui/models/scenes/memory").text
    assert rows_of(page, "numbers-matrix") == [
        ["1", "one", "80.0", "", ""],
        ["2", "two", "70.0 (−10.0)", "50.0", ""],
        ["3", "three", "70.0 (−10.0)", "25.0 (−25.0)", "90.0"],
        ["4", "unlearned two", "75.0 (−5.0)", "", "90.0 (0.0)"],
    ]
    assert [row[0].split()[0] for row in rows_of(page, "datasets")] == ["one", "three"]
    assert 'text-decoration="line-through"' in reader.get("/ui/models/scenes").text
