"""The pages of jobs and versions that unlearn or merge: what they are, and no link where there is no dataset."""

import pytest

from service.states import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train
from tests.unit.service.page.browser import Browser, text_of
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
    plane.client.put("/v1/models/branch/policy", json={"manual_approval": True})
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
    assert "v4 learned no new dataset" in text_of(page)
    assert "Unlearned two" in text_of(page)
    assert "datasets/None" not in page
    page = opened("/ui/models/branch/versions/2")
    assert "learned three" in text_of(page)
    assert "Merged scenes@4" in text_of(page)
    page = opened(f"/ui/jobs/{held['id']}/candidate")
    assert "Unlearned three" in text_of(page)
    for path in (
        f"/ui/jobs/{held['id']}",
        "/ui/models/scenes",
        "/ui/models/branch",
        "/ui/models/scenes/memory",
        "/ui/models/branch/memory",
        "/ui/",
    ):
        assert "None" not in text_of(opened(path))
