"""Promote, roll back and retire on the page."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.unit.service.page.browser import Browser
from tests.unit.service.page.test_job_actions import seen_in


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Browser]:
    """A browser at a control plane without keys, whose model has three versions."""
    plane = ControlPlane(tmp_path)
    plane.create_model()
    for name in ("one", "two", "three"):
        plane.run_to_end(plane.post_dataset(name))
    yield Browser(plane)
    plane.close()


def _live(person: Browser) -> tuple[int, int]:
    live = person.get("/v1/models/scenes/live").json()
    return live["version"], live["generation"]


def test_a_version_is_promoted_and_rolled_back(person: Browser) -> None:
    page = person.get("/ui/models/scenes/promote?version=1")
    assert "Promote v1 of scenes" in page.text
    assert "in place of v3" in page.text
    assert page.text.count("not learned") == 2
    assert "−2" in page.text
    form = {"seen": seen_in(page), "version": "1", "reason": "slow on <b>rain</b>"}
    answer = person.post("/ui/models/scenes/promote", data=form)
    assert person.target(answer) == "/ui/models/scenes?done=promoted"
    assert _live(person) == (1, 4)
    back = person.get("/ui/models/scenes/rollback")
    assert "Roll scenes back to v3" in back.text
    answer = person.post("/ui/models/scenes/rollback", data={"seen": seen_in(back)})
    assert person.target(answer) == "/ui/models/scenes?done=rolled-back"
    assert _live(person) == (3, 5)
    again = person.get("/ui/models/scenes/rollback").text
    assert "Roll scenes back to v2" in again
    assert "<b>rain</b>" not in again


def test_a_promotion_of_somebody_else_is_shown(person: Browser) -> None:
    seen = seen_in(person.get("/ui/models/scenes/promote?version=2"))
    person.put("/v1/models/scenes/live", json={"version": 1})
    for path, form in (
        ("promote", {"seen": seen, "version": "2"}),
        ("rollback", {"seen": seen}),
        ("versions/2/retire", {"seen": seen}),
    ):
        answer = person.post(f"/ui/models/scenes/{path}", data=form)
        assert answer.status_code == 412, path
        assert (
            "generation 4 of &#39;scenes&#39; is live (version 1), not generation 3" in answer.text
        )
        assert seen_in(answer) == "4"
    assert _live(person) == (1, 4)


def test_a_version_that_cannot_be_served_has_no_form(person: Browser) -> None:
    live = person.get("/ui/models/scenes/promote?version=3")
    assert "v3 is live already" in live.text
    assert 'name="seen"' not in live.text
    assert person.get("/ui/models/scenes/promote?version=4").status_code == 404
    assert person.get("/ui/models/scenes/promote?version=0").status_code == 422
    assert person.get("/ui/models/scenes/promote").status_code == 422


def test_a_version_is_retired(person: Browser) -> None:
    page = person.get("/ui/models/scenes/versions/2/retire")
    assert "This cannot be undone" in page.text
    assert "A rollback would return to it now" in page.text
    answer = person.post("/ui/models/scenes/versions/2/retire", data={"seen": seen_in(page)})
    assert person.target(answer) == "/ui/models/scenes?done=retired"
    assert person.get("/v1/models/scenes/versions/2").json()["retired_at"] is not None
    for path, reason in (
        ("versions/2/retire", "It is retired already."),
        ("versions/3/retire", "It is the newest version"),
        ("promote?version=2", "v2 was retired"),
        ("rollback", "v2 was retired"),
    ):
        page = person.get(f"/ui/models/scenes/{path}")
        assert reason in page.text
        assert 'name="seen"' not in page.text
