"""The pages of a version and of a candidate: what they say of each dataset, and what approving changes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import update

from cmcl.contract.api.jobs import JobState
from cmcl.contract.version import Drift, Protection, Shrinkage
from service.database.tables import versions
from tests.fakes.control_plane import ControlPlane
from tests.fakes.measured import publish_measured, recall, write_measured
from tests.unit.service.page.browser import Browser, rows_of, text_of
from tests.unit.service.page.test_jobs import seen_in

PRESERVE = {"policy": "preserve"}
SHRUNK = Shrinkage(
    penalty=0.1, scale=0.5, drift_before=0.9, drift_after=0.3, loss_before=1.5, loss_after=1.75
)
PROTECTED = Protection(
    input_directions=2, input_width=4, output_directions=3, output_width=8, blocked_share=0.25
)


@pytest.fixture
def reader(plane: ControlPlane) -> Browser:
    """A browser at a control plane without keys."""
    return Browser(plane)


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with the model `street`, for tests that only read."""
    plane = ControlPlane(tmp_path_factory.mktemp("read-only"))
    grow(plane)
    yield plane
    plane.close()


@pytest.fixture(scope="module")
def viewer(read_only: ControlPlane) -> Browser:
    """A browser that looks at it."""
    return Browser(read_only)


@pytest.fixture
def grown(plane: ControlPlane) -> ControlPlane:
    """The same for a test that changes something."""
    grow(plane)
    return plane


def grow(plane: ControlPlane) -> None:
    """A model under `preserve` with three versions."""
    plane.create_model("street", **PRESERVE)
    publish_measured(plane, "one", "street", recalls={"one": 0.8}, free={"image": 0.8, "text": 0.7})
    publish_measured(
        plane,
        "two",
        "street",
        ("audio", "text"),
        recalls={"one": 0.75, "two": 0.6},
        drifts={"one": 0.2},
        free={"image": 0.8, "text": 0.5, "audio": 0.6},
    )
    publish_measured(
        plane,
        "three",
        "street",
        recalls={"one": 0.7, "two": 0.625, "three": 0.5},
        drifts={"one": 0.1, "two": 0.35},
        free={"image": 0.6, "text": 0.4, "audio": 0.6},
        changes={
            "recall_before": recall(0.25),
            "shrinkage": SHRUNK,
            "protection": {"image": PROTECTED},
            "seconds": {"reading": 1.5, "training": 80.0},
        },
    )


SAME = "65 % expected 70 %"


def hold(plane: ControlPlane, model: str, name: str, **figures: Any) -> str:
    """A job whose candidate has these figures and waits for approval."""
    job = plane.post_dataset(name, model)
    write_measured(plane, job, **figures)
    plane.tick_to(job, JobState.HELD)
    return job


def set_gate(plane: ControlPlane, model: str, **policy: object) -> None:
    response = plane.client.put(f"/v1/models/{model}/gate", json=policy)
    assert response.status_code == 200, response.text


def test_each_dataset_of_a_version_stands_beside_its_parent(
    read_only: ControlPlane, viewer: Browser
) -> None:
    page = viewer.get("/ui/models/street/versions/3").text
    new, one, two = rows_of(page, "datasets")
    assert new[1:6] == ["– none", "25.0 %", "50.0 % R@10 50.0 %", "+25.0 points", "– none"]
    assert "R@1 counts equal item; own row 25.0 %, R@10 25.0 %" in new[0]
    assert one[1:] == [
        *("80.0 %", "75.0 %", "70.0 % R@10 70.0 %", "−5.0 points", "−10.0 points", "10.0 %", SAME)
    ]
    assert two[1:] == [
        *("60.0 %", "60.0 %", "62.5 % R@10 62.5 %", "+2.5 points", "+2.5 points", "35.0 %", SAME)
    ]


def test_of_many_datasets_those_that_lost_most_are_shown(
    plane: ControlPlane, reader: Browser
) -> None:
    publish_measured(plane, "data")
    manifest = plane.versions()[0].manifest
    line = manifest.learned[0]
    ids = [f"ds-{number:012x}" for number in range(1, 54)]
    learned = [
        line.model_copy(
            update={
                "dataset": each,
                "name": f"data-{number}",
                "version": number,
                "recall": recall(0.6),
            }
        )
        for number, each in enumerate(ids, start=1)
    ]
    drift = {
        each: Drift(since_learned=number / 1000, against_parent=0)
        for number, each in enumerate(ids[1:-1], start=2)
    }
    changes = {
        "dataset": ids[-1],
        "learned": tuple(learned),
        "report": manifest.report.model_copy(
            update={"drift": drift, "evaluation": {ids[29]: recall(0.5)}}
        ),
    }
    document = manifest.model_copy(update=changes).model_dump(mode="json")
    with plane.context.database.write() as connection:
        connection.execute(update(versions).values(manifest=document))
    page = reader.get("/ui/models/scenes/versions/1").text
    names = [row[0].split()[0] for row in rows_of(page, "datasets")]
    assert names == ["data-53", "data-30", *(f"data-{n}" for n in range(1, 50) if n != 30)]
    assert "and 3 datasets that lost less." in text_of(page)
    assert "Of 52 earlier datasets 51 were certified in this version" in text_of(page)


def test_a_version_shows_what_it_is_today(grown: ControlPlane, reader: Browser) -> None:
    def badges(version: int) -> str:
        part = reader.get(f"/ui/models/street/versions/{version}?fragment=live_heading").text
        return text_of(part)

    assert badges(3) == "v3 of street live newest Compare with v2 ← v2"
    assert badges(2) == "v2 of street Compare with v1 ← v1 v3 →"
    assert grown.client.request("DELETE", "/v1/models/street/versions/1").status_code == 204
    assert badges(1) == "v1 of street retired v2 →"


def test_the_manifest_is_a_file(read_only: ControlPlane, viewer: Browser) -> None:
    answer = viewer.get("/ui/models/street/versions/2/manifest")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-disposition"] == (
        'attachment; filename="street-v2-manifest.json"'
    )
    manifest = read_only.client.get("/v1/models/street/versions/2").json()["manifest"]
    assert json.loads(answer.text) == manifest


def test_a_candidate_is_compared_with_its_parent_and_with_each_bound(
    grown: ControlPlane, reader: Browser
) -> None:
    set_gate(grown, "street", manual_approval=True, max_drift=0.4, min_gain=0.1)
    job = hold(
        grown,
        "street",
        "four",
        recalls={"one": 0.65, "four": 0.5},
        drifts={"one": 0.38},
        free={"image": 0.5, "text": 0.3, "audio": 0.6},
        changes={"recall_before": recall(0.375), "protection": {"text": PROTECTED}},
    )
    waiting = grown.post_dataset("five", "street")
    page = reader.get(f"/ui/jobs/{job}").text
    bounds = rows_of(page, "bounds")
    assert [row[1:4] for row in bounds] == [
        ["at most 40 %", "38.0 %", "met"],
        ["– none", "−15.0 points", "not set"],
        ["– none", "65.0 %", "not set"],
        ["at least +10.0 points", "+12.5 points", "met"],
        ["– none", "not measured", "not set"],
    ]
    assert "v3 remains the newest version" in text_of(reader.get(f"/ui/jobs/{job}/reject").text)
    name, *rest = rows_of(page, "datasets")[1]
    assert name.startswith("one image, text; 16 rows in v1")
    assert rest[:2] == ["80.0 %", "70.0 %"]
    assert grown.job(waiting).state != JobState.FAILED


def test_heads_have_free_shares_before_and_after(read_only: ControlPlane, viewer: Browser) -> None:
    page = viewer.get("/ui/models/street/versions/3").text
    found = rows_of(page, "method")
    assert [row[:3] for row in found[:3]] == [
        ["image", "80.0 %", "60.0 %"],
        ["text", "50.0 %", "40.0 %"],
        ["audio", "60.0 %", "60.0 %"],
    ]


def test_means_of_a_promotion_are_of_the_datasets_that_both_versions_measured(
    grown: ControlPlane, reader: Browser
) -> None:
    page = reader.get("/ui/models/street/promote?version=2").text
    assert 'class="state busy"' not in page, "its dataset is not new beside v3"
    text = text_of(page)
    # Over all that each measured they would be 60.8 % and 67.5 %.
    sentence = "Of 2 datasets in both, 1 lost half a point or more of R@1; the mean goes from 66.2 % to 67.5 %."
    assert f"{sentence} two lost most: −2.5 points. v2 has not learned three." in text
    assert sentence in text_of(reader.get("/ui/models/street/rollback").text)


def test_versions_without_a_common_measurement_have_no_means(
    plane: ControlPlane, reader: Browser
) -> None:
    publish_measured(plane, "one")
    publish_measured(plane, "two", recalls={"two": 0.5})
    text = text_of(reader.get("/ui/models/scenes/promote?version=1").text)
    assert "No dataset was measured in both." in text
    assert "50.0 % to" not in text


@pytest.fixture
def person(three: ControlPlane) -> Browser:
    """A browser at a control plane without keys, whose model has three versions."""
    return Browser(three)


def _live(person: Browser) -> tuple[int, int]:
    live = person.get("/v1/models/scenes/live").json()
    return live["version"], live["generation"]


def test_a_version_is_promoted_and_rolled_back(person: Browser) -> None:
    page = person.get("/ui/models/scenes/promote?version=1")
    assert "Promote v1 of scenes" in page.text
    assert "in place of v3" in page.text
    assert "v1 has not learned two, three." in text_of(page.text)
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
    ):
        answer = person.post(f"/ui/models/scenes/{path}", data=form)
        assert answer.status_code == 412, path
        assert (
            "generation 4 of &#39;scenes&#39; is live (version 1), not generation 3" in answer.text
        )
        assert seen_in(answer) == "4"
    assert _live(person) == (1, 4)


def test_the_newest_version_says_how_many_more_datasets_fit(plane: ControlPlane) -> None:
    plane.create_model("room", policy="preserve")
    for name, image, text in (("one", 0.8, 0.16), ("two", 0.4, 0.08), ("three", 0.4, 0.04)):
        publish_measured(plane, name, "room", free={"image": image, "text": text})
    page = Browser(plane).get("/ui/models/room/versions/3").text
    left = {row[0]: row[-1] for row in rows_of(page, "method")}
    assert left == {"image": "about 4", "text": "about 0"}
    assert "A head with less than 10 % free is full" in text_of(page)
    # Of an older version, what is left would be that of the newest.
    assert "Datasets left" not in text_of(Browser(plane).get("/ui/models/room/versions/2").text)
