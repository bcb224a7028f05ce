"""Promote, roll back, retire, and the canary, on the page."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
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
        ("canary/start", {"seen": seen, "version": "2", "share": "10"}),
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


def test_a_canary_is_started_changed_and_aborted(person: Browser) -> None:
    page = person.get("/ui/models/scenes/canary/start")
    assert "Start a canary of scenes" in page.text
    form = {
        "seen": seen_in(page),
        "version": "2",
        "share": "2.5",
        "shadow": "20",
        "max_error_share": "0.5",
        "min_overlap": "80",
        "promote_after": "5000",
        "min_requests": "",
        "min_cosine": "",
        "reason": "compare",
    }
    answer = person.post("/ui/models/scenes/canary/start", data=form)
    assert person.target(answer) == "/ui/models/scenes/canary?done=canary-started"
    canary = person.get("/v1/models/scenes/canary").json()
    assert (canary["version"], canary["share"], canary["shadow"]) == (2, 0.025, 0.2)
    rule = {"min_requests": 100, "max_error_share": 0.005, "min_overlap": 0.8, "min_cosine": None}
    assert canary["rule"] == {**rule, "promote_after": 5000}
    change = person.get("/ui/models/scenes/canary/start?version=2").text
    assert "Change the canary of scenes" in change
    assert 'value="2.5"' in change
    page = person.get("/ui/models/scenes/canary/abort")
    assert "v2 stops answering requests within seconds; v3 answers all" in page.text
    other = {"seen": seen_in(page), "version": "1", "reason": "x"}
    late = person.post("/ui/models/scenes/canary/abort", data=other)
    assert late.status_code == 412
    assert "is version 2, not version 1" in late.text
    answer = person.post("/ui/models/scenes/canary/abort", data={**other, "version": "2"})
    assert person.target(answer) == "/ui/models/scenes/canary?done=canary-aborted"
    assert "The model has no canary now" in person.get("/ui/models/scenes/canary/abort").text


def canary_form(page: httpx.Response, version: int, share: int) -> dict[str, str]:
    """The form of a canary with what its page showed."""
    found = re.search(r'name="seen_canary" value="([^"]*)"', page.text)
    assert found is not None, page.text
    seen = {"seen": seen_in(page), "seen_canary": html.unescape(found[1])}
    return {**seen, "version": str(version), "share": str(share)}


def test_a_canary_that_was_not_seen_is_neither_aborted_nor_changed(person: Browser) -> None:
    path = "/ui/models/scenes/canary/start"

    def canary() -> tuple[int, float]:
        running = person.get("/v1/models/scenes/canary").json()
        return running["version"], running["share"]

    opened = person.get(path)
    assert person.post(path, data=canary_form(opened, 2, 10)).status_code == 303
    late = person.post(path, data=canary_form(opened, 1, 20))
    assert late.status_code == 412
    assert "v2, as local set it, is the canary of &#39;scenes&#39; by now" in late.text
    assert canary() == (2, 0.1)
    # The answer shows the canary that runs, so that its form changes or replaces it.
    opened = person.get(f"{path}?version=2")
    assert person.post(path, data=canary_form(late, 2, 30)).status_code == 303
    assert person.post(path, data=canary_form(opened, 2, 40)).status_code == 412
    assert canary() == (2, 0.3)
    opened = person.get(f"{path}?version=2")
    rule = {**canary_form(opened, 2, 30), "min_requests": "7"}
    assert person.post(path, data=rule).status_code == 303
    assert person.post(path, data={**rule, "min_requests": "8"}).status_code == 412
    opened = person.get(path)
    assert person.request("DELETE", "/v1/models/scenes/canary").status_code == 204
    gone = person.post(path, data=canary_form(opened, 2, 50))
    assert gone.status_code == 412
    assert "no version is the canary of &#39;scenes&#39; by now" in gone.text


@pytest.mark.parametrize(
    "form",
    [
        {"version": "2", "share": "101"},
        {"version": "2", "share": "-1"},
        {"version": "2", "share": "nan"},
        {"version": "2"},
        {"version": "two", "share": "1"},
        {"version": "2", "share": "0", "min_overlap": "90", "promote_after": "10"},
        {"version": "2", "share": "1", "more": "x"},
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_judged_is_refused(person: Browser, form: dict[str, str]) -> None:
    answer = person.post("/ui/models/scenes/canary/start", data={"seen": "3", **form})
    assert answer.status_code == 422
    assert person.get("/v1/models/scenes/canary").status_code == 404
