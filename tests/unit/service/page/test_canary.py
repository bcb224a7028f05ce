"""The canary of a model: the present result of its rule, when the rule decides, and how earlier ones ended."""

from typing import Any

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.fakes.measured import publish_measured
from tests.fakes.observations import agreement, observe
from tests.unit.service.page.browser import Browser, rows_of, text_of

CANARY = "/ui/models/scenes/canary"


@pytest.fixture
def reader(plane: ControlPlane) -> Browser:
    """A browser at a control plane without keys."""
    return Browser(plane)


@pytest.fixture
def two(plane: ControlPlane) -> ControlPlane:
    """A control plane whose model has two versions; the second one is live."""
    publish_measured(plane, "one")
    publish_measured(plane, "two")
    return plane


def start(plane: ControlPlane, version: int = 1, **plan: object) -> None:
    body = {"version": version, "share": 0.1, "reason": "try it", **plan}
    response = plane.client.put("/v1/models/scenes/canary", json=body)
    assert response.status_code == 200, response.text
    plane.tick()


def seen(plane: ControlPlane, seconds: float = 60, **observation: Any) -> None:
    """A replica reports, so many seconds after now."""
    plane.clock.advance(seconds)
    observe(plane.store, at=plane.clock(), **observation)
    plane.tick()


def test_without_a_live_version_it_names_the_first_dataset(
    plane: ControlPlane, reader: Browser
) -> None:
    text = text_of(reader.get(CANARY).text)
    assert "the model has none yet" in text
    assert "cmcl dataset add FOLDER --model scenes" in text


def test_without_a_canary_it_says_how_to_start_one(two: ControlPlane, reader: Browser) -> None:
    text = text_of(reader.get(CANARY).text)
    assert "No canary runs" in text
    assert "v2 is live." in text
    assert "cmcl canary start scenes@VERSION --share 0.1" in text
    assert "cmcl canary policy scenes --publish-as canary" in text
    assert "No canary has ended" in text


def test_the_rule_is_shown_beside_what_was_observed(two: ControlPlane, reader: Browser) -> None:
    rule = {"min_requests": 100, "max_error_share": 0.2, "min_overlap": 0.8, "promote_after": 1000}
    start(two, share=0.1, shadow=0.25, rule=rule)
    text = text_of(reader.get(CANARY).text)
    assert "v1 serves 10 % of the callers, and scores 25 % of the requests of v2" in text
    assert "It becomes live after 1 000 requests, if it violates no bound." in text
    assert "Bounds are checked from 100 requests on." in text
    # Two minutes after its start: 40 requests of 1000, so 48 minutes are left.
    seen(two, 118, answered=20, shadowed=16, failed=4, pairs=agreement(16, 0.99, 0.75))
    page = reader.get(CANARY).text
    assert rows_of(page, "rule") == [
        ["Failed requests", "at most 20.0 %", "10.0 %", "met"],
        ["Lowest cosine of a pair", "– none", "0.99", "not set"],
        ["Lowest overlap of a pair", "at least 80.0 %", "75.0 %", "too few queries"],
    ]
    text = text_of(page)
    assert "40 requests 20 answered, 16 shadowed, 4 failed" in text
    assert "Bounds are checked from 100 requests on, in about" in text
    assert "75.0 % lowest overlap image and text" in text
    assert rows_of(page, "agreement") == [["image, text", "16", "0.99", "75.0 %"]]


def test_a_pair_with_too_few_queries_holds_the_promotion_up(
    two: ControlPlane, reader: Browser
) -> None:
    start(two, shadow=0.25, rule={"min_requests": 10, "min_overlap": 0.8, "promote_after": 50})
    seen(two, answered=45, shadowed=4, pairs=agreement(4, 0.99, 0.9))
    text = text_of(reader.get(CANARY).text)
    assert "being judged" in text
    assert "49 of 50 requests until it becomes live." in text
    assert (
        "It is not promoted before each pair has 10 queries in shadow; image and text has" in text
    )


def test_while_the_agreement_is_unknown_no_time_is_forecast(
    two: ControlPlane, reader: Browser
) -> None:
    start(two, shadow=0.25, rule={"min_requests": 10, "min_overlap": 0.8, "promote_after": 50})
    assert "? Until it is live no request was observed yet" in text_of(reader.get(CANARY).text)
    seen(two, answered=60)
    text = text_of(reader.get(CANARY).text)
    assert "? Until it is live its agreement is not known yet" in text
    assert "each pair has 10 queries in shadow; none was observed yet." in text
    seen(two, answered=60, shadowed=4, pairs=agreement(4, 0.99, 0.9))
    text = text_of(reader.get(CANARY).text)
    assert "? Until it is live its agreement is not known yet" in text
    assert "each pair has 10 queries in shadow; image and text has fewer." in text
    assert "No canary has ended" in text, "the judge does not promote it either"


def test_the_forecast_counts_from_the_last_change_of_the_shares(
    two: ControlPlane, reader: Browser
) -> None:
    rule = {"promote_after": 200}
    start(two, share=0.1, rule=rule)
    two.clock.advance(3600)
    changed = two.clock()
    start(two, share=0.2, rule=rule)
    # 100 requests in 100 seconds.
    seen(two, 100 - (two.clock() - changed).total_seconds(), answered=100)
    text = text_of(reader.get(CANARY).text)
    assert "1 min 40 s Until it is live at 3 600 requests an hour" in text


def test_it_is_not_forecast_to_be_promoted_before_it_is_judged(
    two: ControlPlane, reader: Browser
) -> None:
    start(two, rule={"min_requests": 120, "promote_after": 50})
    seen(two, answered=60)
    assert "0.0 s Until it is live" not in text_of(reader.get(CANARY).text)


def test_until_a_person_promotes_it_no_time_is_left(two: ControlPlane, reader: Browser) -> None:
    start(two, share=0.5)
    text = text_of(reader.get(CANARY).text)
    assert "by hand Until it is live" in text
    assert "It stays a canary until someone promotes or aborts it" in text
    assert "Agreement is measured in shadow, and the canary has none." in text
    assert "cmcl canary start scenes@1 --share 0.5 --shadow 0.25" in text


def test_ended_canaries_say_how_and_why(two: ControlPlane, reader: Browser) -> None:
    start(two, share=0.5)
    start(two, share=0.25)
    path = "/v1/models/scenes/canary?reason=too%20slow"
    assert two.client.request("DELETE", path).status_code == 204
    start(two, rule={"min_requests": 10, "max_error_share": 0.1})
    seen(two, answered=10, failed=10)
    two.tick(2)
    found = rows_of(reader.get(CANARY).text, "live_ended")
    assert [row[:2] for row in found] == [["v1", "aborted"], ["v1", "aborted"], ["v1", "changed"]]
    assert "10 of 20 requests failed because of it" in found[0][2]
    assert found[0][5:7] == ["20", "50.0 %"]
    assert "too slow" in found[1][2]
    assert "No canary runs" in text_of(reader.get(CANARY).text)


def test_many_ended_canaries_come_in_pages(two: ControlPlane, reader: Browser) -> None:
    for number in range(12):
        start(two, share=(number + 1) / 20)
    page = reader.get(CANARY).text
    assert len(rows_of(page, "live_ended")) == 9
    following = page.partition('rel="next" href="')[2].partition('"')[0].partition("?")[2]
    rest = reader.get(f"{CANARY}?{following}").text
    assert len(rows_of(rest, "live_ended")) == 2
    # The canary that runs is on every page.
    assert "serves 60 % of the callers" in text_of(rest)


def test_replicas_that_cannot_load_it_are_named(two: ControlPlane, reader: Browser) -> None:
    start(two)
    two.clock.advance(5)
    observe(two.store, "r-7", at=two.clock(), refused="no memory <b>left</b>")
    two.tick(2)
    page = reader.get(CANARY).text
    assert "replica r-7 could not load it: no memory <b>left</b>" in text_of(page)
    assert "<b>left" not in page
