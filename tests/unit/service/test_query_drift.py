"""Drift that replicas report becomes a metric, one event when it begins and one when it ends, and a picture."""

import re

import pytest
from sqlalchemy import select

from cmcl.storage import layout
from service.database.tables import events
from service.registry.query_drift import QueryDriftLoop
from tests.fakes.control_plane import ControlPlane
from tests.fakes.query_drift import report_query_drift
from tests.unit.service.page.browser import Browser, text_of


def look(plane: ControlPlane) -> None:
    QueryDriftLoop(plane.context).look()


def emitted(plane: ControlPlane) -> list[dict[str, object]]:
    with plane.context.database.read() as connection:
        query = select(events.c.data).where(events.c.kind == "model.drifted")
        return list(connection.scalars(query.order_by(events.c.sequence)))


def test_an_event_tells_once_that_drift_begins_and_that_it_ends(plane: ControlPlane) -> None:
    levels = [0.5]
    told = []
    for level in (0.7, 2.5, 3.0, 0.9, 0.9, 0.9, 0.9):
        levels.append(level)
        report_query_drift(plane.store, {"image": levels, "text": [0.1]})
        look(plane)
        # Another instance of the service.
        look(plane)
        told.append([each["drifting"] for each in emitted(plane)])
    assert told == [[], *[[["image"]]] * 4, *[[["image"], []]] * 2]
    assert emitted(plane)[0] == {
        "drifting": ["image"],
        "level": {"image": 2.5, "text": 0.1},
        "version": 1,
    }


def test_drift_ends_with_a_version_that_has_learned_what_is_asked(plane: ControlPlane) -> None:
    told = []
    for levels, promoted in (([2.5], None), ([2.5, 0.9], None), ([2.5, 0.9, 0.9], 2)):
        report_query_drift(plane.store, {"image": levels}, promoted=promoted)
        look(plane)
        told.append([each["drifting"] for each in emitted(plane)])
    assert told == [[["image"]], [["image"]], [["image"], []]]


def test_the_metric_is_the_newest_level(plane: ControlPlane) -> None:
    report_query_drift(plane.store, {"image": [0.5, 2.5]})
    look(plane)
    text = plane.client.get("/metrics").text
    assert 'cmcl_service_query_drift{modality="image",model="scenes"} 2.5' in text


def test_the_report_of_a_model_that_is_gone_is_removed(plane: ControlPlane) -> None:
    report_query_drift(plane.store, {"image": [2.5]}, model="gone")
    look(plane)
    assert list(plane.store.keys(layout.drift_reports())) == []
    assert emitted(plane) == []


def test_a_report_that_cannot_be_read_hides_no_other(plane: ControlPlane) -> None:
    plane.store.put(layout.drift_report("damaged"), b"{}")
    report_query_drift(plane.store, {"image": [2.5]})
    look(plane)
    assert len(emitted(plane)) == 1


def test_a_page_needs_no_report(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    plane.store.put(layout.drift_report("scenes"), b"{}")
    assert plane.client.get("/v1/models/scenes/drift").json() == {"drifting": [], "windows": {}}
    plane.store.broken = "drift/"
    assert plane.client.get("/v1/models/scenes/drift").status_code == 503
    assert Browser(plane).get("/ui/models/scenes").status_code == 200


@pytest.mark.parametrize("is_queried", [False, True])
def test_api_and_page_show_the_windows(plane: ControlPlane, is_queried: bool) -> None:
    if is_queried:
        report_query_drift(plane.store, {"image": [0.5, 2.5], "text": [0.1, 1.0, 0.3]})
    found = plane.client.get("/v1/models/scenes/drift").json()
    markup = Browser(plane).get("/ui/models/scenes").text
    page = text_of(markup)
    if not is_queried:
        assert found == {"drifting": [], "windows": {}}
        assert "Drift of queries" not in page
        assert "query-drift" not in markup
        return
    assert found["drifting"] == ["image"]
    assert [each["level"] for each in found["windows"]["image"]] == [0.5, 2.5]
    assert "Those of image are not like what was learned." in page
    assert "above it: image in 1 of 2 windows." in page
    figure = markup[markup.index('id="figure-query-drift"') :]
    wide = figure[: figure.index("</svg>")]
    drawn = re.findall(
        r'<path d="([^"]*)" class="cmcl-s-[12]" fill="none" [^>]*stroke-width="2"', wide
    )
    assert [len(re.findall("[ML]", line)) for line in drawn] == [2, 3]
    # A triangle at the window above the band, whose lower edge is at its point.
    (mark,) = re.findall(r'd="M([0-9.]+) ([0-9.]+)l4 8h-8z"', wide)
    x, y = map(float, re.findall(r"L([0-9.]+) ([0-9.]+)$", drawn[0])[0])
    assert (float(mark[0]), float(mark[1]) + 5) == pytest.approx((x, y), abs=0.11)
    numbers = re.findall(r"<td>([^<]*)</td>", figure[: figure.index("</table>")])
    assert numbers == ["0.5", "0.1", "2.5, over the bound", "1", "–", "0.3"]
