"""The room that is left: free shares with a forecast, or rank and gap where no entry is closed."""

import pytest

from cmcl.contract.version import Solution
from tests.fakes.control_plane import ControlPlane
from tests.fakes.measured import publish_measured
from tests.unit.service.page.browser import Browser, rows_of, text_of

PRESERVE = {"policy": "preserve"}
SOLUTION = Solution(ridges={"image": 0.1, "text": 0.1}, directions=6, groups=(("image", "text"),))


@pytest.fixture
def reader(plane: ControlPlane) -> Browser:
    """A browser at a control plane without keys."""
    return Browser(plane)


def test_it_says_how_much_is_free_after_more_datasets(plane: ControlPlane, reader: Browser) -> None:
    plane.create_model("street", **PRESERVE)
    sounds = {"pair": ("audio", "text")}
    publish_measured(plane, "one", "street", free={"image": 0.8, "text": 0.16})
    publish_measured(plane, "two", "street", free={"image": 0.4, "text": 0.08})
    publish_measured(
        plane, "three", "street", **sounds, free={"image": 0.4, "text": 0.04, "audio": 0.5}
    )
    page = reader.get("/ui/models/street/capacity").text
    # The fullest head comes first; half of the free share is taken by each dataset.
    assert rows_of(page, "forecast") == [
        [
            *("text", "4.0 %", "2.0 %, full", "1.0 %, full", "0.5 %, full", "0.1 %, full"),
            *("0.0 %, full", "about 0", "50.0 %"),
        ],
        [
            *("image", "40.0 %", "20.0 %", "10.0 %", "5.0 %, full", "1.2 %, full"),
            *("0.0 %, full", "about 2", "50.0 %"),
        ],
        ["audio", "50.0 %", *["– none"] * 5, "not known", "– none"],
    ]
    text = text_of(page)
    assert "4.0 % text is free full: below 10 %" in text
    assert "40.0 % image is free about 2 more datasets" in text
    assert "50.0 % audio is free no forecast yet" in text
    assert rows_of(page, "heads")[0] == ["text", "1 of 5", "2 of 8"]
    options = "--width 16 --modality image=4 --modality text=3 --modality audio=4"
    assert f"cmcl model create NAME --policy improve {options}" in text


def test_where_heads_are_solved_it_shows_rank_and_gap_instead(
    plane: ControlPlane, reader: Browser
) -> None:
    publish_measured(plane, "one", recalls={"one": 0.5}, changes={"solution": SOLUTION})
    text = text_of(reader.get("/ui/models/scenes/capacity").text)
    assert "No entry is closed, so no free share runs out" in text
    assert "6 Directions of 8, the width: these datasets have no more" in text
    for name, now in (("two", -0.9), ("three", -0.8)):
        losses = {"one": (now, -1.2)}
        publish_measured(plane, name, losses=losses, changes={"solution": SOLUTION})
    page = reader.get("/ui/models/scenes/capacity").text
    text = text_of(page)
    assert "0.4 Gap to the lowest loss mean over earlier datasets" in text
    # A wider model is proposed only where all of the width is in use.
    assert "A wider model has room" not in text
    full = SOLUTION.model_copy(update={"directions": 8})
    publish_measured(plane, "four", losses=losses, changes={"solution": full})
    text = text_of(reader.get("/ui/models/scenes/capacity").text)
    assert "8 Directions of 8, the width: every direction is in use" in text
    assert "A wider model has room" in text
