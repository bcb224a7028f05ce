"""Questions of a first-time visitor: one page answers each of them in text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cmcl.contract.api.jobs import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.measured import publish_measured, write_measured
from tests.unit.service.page.browser import Browser, rows_of, text_of

SOUNDS = ("audio", "text")


@dataclass(frozen=True)
class World:
    """A model with three versions, a candidate that waits for a decision, and a job behind it."""

    browser: Browser
    held: str
    waiting: str

    def read(self, path: str) -> str:
        """The text of a page."""
        return text_of(self.browser.get(f"/ui/{path}").text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    plane = ControlPlane(tmp_path_factory.mktemp("questions"))
    plane.create_model("street", policy="preserve")
    figures: tuple[dict[str, Any], ...] = (
        {"recalls": {"one": 0.8}, "free": {"image": 0.9, "text": 0.8}},
        {
            "recalls": {"one": 0.75, "two": 0.6},
            "drifts": {"one": 0.2},
            "free": {"image": 0.9, "text": 0.4, "audio": 0.8},
        },
        {
            "recalls": {"one": 0.7, "two": 0.59, "three": 0.5},
            "drifts": {"one": 0.1, "two": 0.35},
            "free": {"image": 0.9, "text": 0.2, "audio": 0.72},
        },
    )
    pairs = {"one": ("image", "text"), "two": SOUNDS, "three": SOUNDS}
    for (name, pair), measured in zip(pairs.items(), figures, strict=True):
        publish_measured(plane, name, "street", pair, **measured)
    policy = {"manual_approval": True, "max_drift": 0.4}
    assert plane.client.put("/v1/models/street/gate", json=policy).status_code == 200
    held = plane.post_dataset("four", "street")
    write_measured(plane, held, recalls={"one": 0.65, "four": 0.5}, drifts={"one": 0.38})
    plane.tick_to(held, JobState.HELD)
    waiting = plane.post_dataset("five", "street")
    plane.tick(3)
    yield World(Browser(plane), held, waiting)
    plane.close()


def test_what_is_live(world: World) -> None:
    assert "v3 live answers all requests" in world.read("models/street")
    overview = world.browser.get("/ui/").text
    assert "1 live of 1 model" in text_of(overview)
    [row] = rows_of(overview, "live_models")
    assert row[:2] == ["street", "v3"]


def test_why_a_job_waits(world: World) -> None:
    text = world.read(f"jobs/{world.waiting}")
    assert "A model learns one dataset at a time" in text
    assert "four is held." in text
    assert "until a person approves or rejects it. It is the next one." in text


def test_which_dataset_lost_most_and_whether_that_is_within_the_bound(world: World) -> None:
    answer = (
        "Of the 2 earlier datasets, one lost most since it was learned: −10.0 points of R@1, with a "
        "drift of 10.0 %. The largest drift is 35.0 %, of two, which is within the bound of 40 %."
    )
    assert answer in world.read("models/street/memory")
    assert answer in world.read("models/street/versions/3")


def test_whether_three_more_datasets_fit(world: World) -> None:
    text = world.read("models/street/capacity")
    # Each took a tenth of what was free in the head of audio, and half of that of text.
    assert "Three more datasets of audio fit: about 52 % of its head would still be free." in text
    assert "Three more datasets of text do not fit: about 2 % of its head would be free" in text
    assert "Three more datasets of image have no forecast" in text


def test_what_changes_if_i_approve(world: World) -> None:
    text = world.read(f"jobs/{world.held}/candidate")
    answer = (
        "If you approve v4 becomes the newest version: the next dataset is learned from it, and not "
        "from v3. 1 job of the model can go on. It becomes live on all replicas within seconds, in "
        "place of v3, which stays stored and can be rolled back to."
    )
    assert answer in text
    assert "The largest drift is 38.0 %, of one, which is within the bound of 40 %." in text
    # The page that asks again says the same.
    confirmation = world.read(f"jobs/{world.held}/approve")
    assert answer.removeprefix("If you approve ") in confirmation
