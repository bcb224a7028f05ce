"""The pages of a model: memory, two versions, graph, and what they say of versions that unlearn or merge."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update

from cmcl.contract.api.endpoint import CollectionList, HeldOutHit, HeldOutRanks, ItemsResponse
from cmcl.contract.api.jobs import JobState
from cmcl.contract.version import Drift, Recall, VersionManifest
from service.database.queries.versions import from_manifest
from service.database.tables import models, versions
from tests.fakes.control_plane import ControlPlane
from tests.fakes.endpoint import FakeEndpoint, collection
from tests.fakes.measured import publish_measured, recall, write_measured
from tests.fakes.responses import body
from tests.fakes.trainer import train
from tests.unit.service.page.browser import Browser, rows_of, text_of
from tests.unit.service.page.trying import MODALITIES, ROWS, open_plane
from tests.unit.service.test_unlearning import learn, unlearn, unlearned

MEMORY = "/ui/models/scenes/memory"
LONG, DATASETS = 102, 60


@pytest.fixture
def reader(plane: ControlPlane) -> Browser:
    """A browser at a control plane without keys."""
    return Browser(plane)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser at a control plane whose model has 102 versions and 60 datasets with held-out rows."""
    plane = ControlPlane(tmp_path_factory.mktemp("long"))
    plane.create_model()
    publish_measured(plane, "data-1", recalls={"data-1": 0.9})
    first = plane.versions()[0].manifest
    rows = [
        {
            "model": "scenes",
            "number": number,
            "attempt": 1,
            "parent": number - 1,
            "created_at": plane.clock(),
            "stored_at": plane.clock(),
            **from_manifest(_manifest(first, number)),
        }
        for number in range(2, LONG + 1)
    ]
    with plane.context.database.write() as connection:
        connection.execute(insert(versions), rows)
        connection.execute(update(models).values(head=LONG))
    yield Browser(plane)
    plane.close()


def _manifest(first: VersionManifest, number: int) -> VersionManifest:
    """A version whose datasets lose a hundredth of a point in each version; the first one ten times as much."""
    learned = min(number, DATASETS)
    lines = [
        first.learned[0].model_copy(
            update={
                "dataset": _id(each),
                "name": f"data-{each}",
                "version": each,
                "recall": recall(0.9),
            }
        )
        for each in range(1, learned + 1)
    ]
    own = lines[-1].model_copy(update={"version": number}) if number > DATASETS else lines[-1]
    evaluation = {line.dataset: _recall(each, number) for each, line in enumerate(lines, start=1)}
    drift = {line.dataset: Drift(since_learned=0.01, against_parent=0) for line in lines[:-1]}
    report = first.report.model_copy(update={"evaluation": evaluation, "drift": drift})
    changes = {"version": number, "learned": (*lines[:-1], own), "report": report}
    return first.model_copy(update={**changes, "dataset": own.dataset})


def _recall(dataset: int, version: int) -> Recall:
    lost = (version - dataset) * (0.001 if dataset == 1 else 0.0001)
    return recall(0.9 - lost, 0.95 - lost)


def _id(number: int) -> str:
    return f"ds-{number:012x}"


def test_each_dataset_has_its_recall_then_and_now(plane: ControlPlane, reader: Browser) -> None:
    publish_measured(plane, "one", recalls={"one": 0.8})
    publish_measured(plane, "two", recalls={"one": 0.6, "two": 0.5}, drifts={"one": 0.3})
    publish_measured(
        plane,
        "three",
        recalls={"one": 0.7, "two": 0.625, "three": 0.9},
        drifts={"one": 0.2, "two": 0.1},
    )
    page = reader.get(MEMORY).text
    assert rows_of(page, "datasets") == [
        [
            "one image, text",
            "v1",
            *("80.0 %", "70.0 %", "−10.0 points", "20.0 %"),
        ],
        [
            "two image, text",
            "v2",
            *("50.0 %", "62.5 %", "+12.5 points", "10.0 %"),
        ],
        [
            "three image, text",
            "v3",
            *("90.0 %", "90.0 %", "– none", "– none"),
        ],
    ]
    # The matrix is a table as well: recall, and in brackets the change since learned.
    assert rows_of(page, "numbers-matrix")[2] == [
        "3",
        "three",
        "70.0 (−10.0)",
        "62.5 (+12.5)",
        "90.0",
    ]
    # A cell leads to the comparison with the version that learned the dataset; the diagonal to that version.
    (dataset,) = set(re.findall(r"compare\?before=1&amp;after=3&amp;dataset=([\w-]+)", page))
    assert page.count(f"compare?before=1&amp;after=2&amp;dataset={dataset}") == 1
    assert 'href="./versions/3"' in page


@pytest.mark.parametrize(
    ("recalls", "sentence"),
    [
        ({"one": 0.827}, "The earlier dataset, one, lost no R@1"),
        ({"one": 0.76}, "The earlier dataset, one, has changed by −4.0"),
        ({"one": 0.7998}, "The earlier dataset, one, lost no R@1"),
        ({}, "The largest drift is 10.0 %, of one"),
    ],
    ids=["gained", "lost", "lost less than is shown", "not measured again"],
)
def test_one_earlier_dataset_is_lost_only_if_its_recall_fell(
    plane: ControlPlane, reader: Browser, recalls: dict[str, float], sentence: str
) -> None:
    publish_measured(plane, "one", recalls={"one": 0.8})
    publish_measured(plane, "two", recalls={"two": 0.5, **recalls})
    for path in ("memory", "versions/2"):
        text = text_of(reader.get(f"/ui/models/scenes/{path}").text)
        assert sentence in text
        assert "1 earlier" not in text


def test_recall_among_ten_is_another_view(long: Browser) -> None:
    text = text_of(long.get(f"{MEMORY}?at=10").text)
    assert "points of R@10" in text
    assert "R@1 " not in text


def test_a_long_history_is_thinned_and_changes_are_still_those_since_learned(long: Browser) -> None:
    answer = long.get(MEMORY)
    text = text_of(answer.text)
    assert "Versions 1 to 102, one in 4" in text
    # The first dataset was learned in a version that is not shown.
    matrix = rows_of(answer.text, "numbers-matrix")
    assert [row[0] for row in matrix][:2] == ["2", "6"]
    assert matrix[0][2] == "89.9 (−0.1)"
    assert "data-1 lost most since it was learned: −10.1 points" in text
    assert len(answer.content) < 150_000


def test_versions_that_follow_each_other_can_be_turned_over(long: Browser) -> None:
    page = long.get(f"{MEMORY}?to=102").text
    assert [row[0] for row in rows_of(page, "numbers-matrix")] == [str(n) for n in range(77, 103)]
    assert "77 to 102" in text_of(page)
    assert "to=76" in page
    page = long.get(f"{MEMORY}?to=76").text
    assert [row[0] for row in rows_of(page, "numbers-matrix")][-1] == "76"
    assert "to=102" in page
    # An address from another model, or one that was typed, leads to the newest.
    assert "77 to 102" in text_of(long.get(f"{MEMORY}?to=2147483647").text)


def test_many_datasets_come_in_pages(long: Browser) -> None:
    page = long.get(f"{MEMORY}?rows=50").text
    assert len(rows_of(page, "datasets")) == 10
    first = rows_of(long.get(MEMORY).text, "datasets")
    assert (len(first), first[0][0].split()[0]) == (50, "data-1")
    assert {len(row) for row in rows_of(long.get(MEMORY).text, "numbers-matrix")} == {18}


@pytest.mark.parametrize("query", ["to=0", "to=x", "at=5", "rows=-1", "to=9999999999"])
def test_queries_that_cannot_be_are_refused(long: Browser, query: str) -> None:
    answer = long.get(f"{MEMORY}?{query}")
    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.text


COMPARE = "/ui/models/scenes/compare"


@pytest.fixture
def compared(tmp_path: Path, endpoint: FakeEndpoint) -> Iterator[tuple[Browser, str]]:
    """Three versions; v2 took five points of dataset `one`, whose id is the second value."""
    plane = open_plane(tmp_path, endpoint)
    plane.create_model("scenes", modalities=MODALITIES)
    first = publish_measured(plane, "one", recalls={"one": 0.8})
    publish_measured(plane, "two", recalls={"one": 0.75, "two": 0.5}, drifts={"one": 0.2})
    publish_measured(plane, "three", recalls={"one": 0.75, "two": 0.625, "three": 0.9})
    yield Browser(plane), first
    plane.close()


def answer_rows(endpoint: FakeEndpoint, dataset: str, ranks: dict[int, int]) -> None:
    """Both rows of the dataset have their partner at the rank of the version."""
    for version, rank in ranks.items():
        path = f"/v1/models/scenes@{version}/held-out/{dataset}"
        first = body(HeldOutHit, id=f"x{rank}", modality="text")
        rows = [{**row, "rank": rank, "first": first} for row in ROWS["data"]]
        endpoint.answers[f"POST {path}/ranks"] = body(
            HeldOutRanks, data=rows, model=f"scenes@{version}", modality="image", rows=2
        )


def test_two_versions_are_compared_by_what_both_measured(compared: tuple[Browser, str]) -> None:
    browser, _ = compared
    text = text_of(browser.get(f"{COMPARE}?before=2&after=3").text)
    assert (
        "Of 2 datasets in both, none lost half a point or more of R@1; the mean goes from 62.5 % "
        "to 68.8 %." in text
    )
    text = text_of(browser.get(f"{COMPARE}?before=1&after=3").text)
    assert "Of 1 dataset in both, 1 lost half a point or more" in text
    assert "one lost most: −5.0 points" in text
    assert "v2, which learned two, changed it by −5.0 points." in text
    for query, status in (("before=1&after=9", 404), ("before=0&after=1", 422), ("before=1", 422)):
        assert browser.get(f"{COMPARE}?{query}").status_code == status
    assert browser.get(f"{COMPARE}?before=1&after=3&dataset=ds-x").status_code == 404
    drawn = browser.get(f"{COMPARE}?before=1&after=3&picture=recall")
    assert drawn.headers["content-type"] == "image/svg+xml"
    assert 'filename="models-scenes-compare-recall.svg"' in drawn.headers["content-disposition"]
    assert "cmcl · models/scenes/compare" in drawn.text
    assert browser.get(f"{COMPARE}?before=1&after=3&picture=model").status_code == 404


def test_rows_whose_partner_fell_say_why(
    compared: tuple[Browser, str], endpoint: FakeEndpoint
) -> None:
    browser, first = compared
    address = f"{COMPARE}?before=1&after=3&dataset={first}"
    endpoint.down = True
    assert "Rows cannot be shown: The endpoint does not answer." in text_of(
        browser.get(address).text
    )
    endpoint.down = False
    answer_rows(endpoint, first, {1: 1, 3: 2})
    endpoint.asked.clear()
    page = browser.get(address).text
    text = text_of(page)
    assert text.count("Its partner is number 1 in v1 and number 2 in v3.") == 2
    assert "x1 first in v1" in text
    assert "x2 first in v3" in text
    assert "<img" not in page, "no collection has them"
    assert f"where=dataset%3A{first}&amp;modality=image&amp;row=0&amp;version=1&amp;other=3" in page
    # What fell furthest comes first.
    path = f"POST /v1/models/scenes@3/held-out/{first}/ranks"
    endpoint.answers[path]["data"][1]["rank"] = 5  # type: ignore[index]
    text = text_of(browser.get(address).text)
    assert text.index("number 5 in v3") < text.index("number 2 in v3")
    answer_rows(endpoint, first, {1: 2, 3: 2})
    text = text_of(browser.get(address).text)
    assert "Both versions find the partners of the first 2 held-out rows at the same places" in text


def test_rows_whose_partner_fell_have_the_pictures_of_a_collection(
    compared: tuple[Browser, str], endpoint: FakeEndpoint
) -> None:
    browser, first = compared
    answer_rows(endpoint, first, {1: 1, 3: 2})
    listed = [collection("pictures"), collection("elsewhere", "another"), collection("busy")]
    endpoint.answers["GET /v1/collections"] = body(CollectionList, data=listed)
    pictured = {"id": "a", "modality": "image", "payload": None, "thumbnail": "/9j/4AAQ"}
    # A text that was found has the picture of its pair.
    items = [pictured, {**pictured, "id": "x1"}]
    endpoint.answers["GET /v1/collections/pictures/items"] = body(ItemsResponse, data=items)
    page = browser.get(f"{COMPARE}?before=1&after=3&dataset={first}").text
    assert re.findall(r'<img src="([^"]+)" alt="([^"]+)"', page) == [
        ("data:image/jpeg;base64,/9j/4AAQ", f"Picture of {name}") for name in ("a", "x1", "x1")
    ]
    (asked,) = [each.url for each in endpoint.asked if each.url.path.endswith("pictures/items")]
    assert asked.params.get_list("id") == ["a", "b", "x1", "x2"]
    assert not [each for each in endpoint.asked if "elsewhere" in each.url.path]


FOUR = {"image": 4, "text": 3, "audio": 4, "touch": 2, "smell": 2}
GRAPH = "/ui/models/senses?fragment=live_graph"


@pytest.fixture
def senses(plane: ControlPlane) -> ControlPlane:
    """A control plane with a model of five modalities that has learned nothing."""
    plane.create_model("senses", modalities=FOUR)
    return plane


def test_learned_pairs_have_the_recall_of_their_datasets(
    senses: ControlPlane, reader: Browser
) -> None:
    publish_measured(senses, "one", "senses", recalls={"one": 0.8})
    publish_measured(senses, "two", "senses", ("text", "image"))
    publish_measured(senses, "three", "senses", ("audio", "text"))
    publish_measured(senses, "four", "senses", recalls={"one": 0.75, "two": 0.25, "four": 0.5})
    page = reader.get(GRAPH).text
    assert rows_of(page, "numbers-graph") == [
        ["image", "text", "learned", "3", "50.0"],
        ["audio", "text", "learned", "1", "–"],
    ]
    assert "5 modalities, 2 learned pairs" in text_of(page)


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
    assert "Unlearned two" in text_of(page)
    assert "datasets/None" not in page
    page = opened("/ui/models/branch/versions/2")
    assert "learned three" in text_of(page)
    assert "Merged scenes@4" in text_of(page)
    page = opened(f"/ui/jobs/{held['id']}")
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
    assert "− <del><bdi>two</bdi></del>" in reader.get("/ui/models/scenes").text


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


def test_which_dataset_lost_most_and_whether_that_is_within_the_bound(world: World) -> None:
    answer = (
        "Of the 2 earlier datasets, one lost most since it was learned: −10.0 points of R@1, with a "
        "drift of 10.0 %. The largest drift is 35.0 %, of two, whose R@1 changed by −1.0 points; it is "
        "within the bound of 40 %."
    )
    assert answer in world.read("models/street/memory")
    assert answer in world.read("models/street/versions/3")


def test_what_changes_if_i_approve(world: World) -> None:
    text = world.read(f"jobs/{world.held}")
    answer = (
        "v4 becomes the newest version: the next dataset is learned from it, and not "
        "from v3. 1 job of the model can go on. It becomes live on all replicas within seconds, in "
        "place of v3, which stays stored and can be rolled back to."
    )
    assert "Ready to approve: 1 of 1 bound met." in text
    assert (
        "with a drift of 38.0 %. That is the largest drift; it is within the bound of 40 %." in text
    )
    assert answer in world.read(f"jobs/{world.held}/approve")


def test_the_overview_has_the_last_day_of_each_model_and_its_recall_by_version(
    plane: ControlPlane, reader: Browser
) -> None:
    assert "The last day" not in reader.get("/ui/").text
    publish_measured(plane, "one", recalls={"one": 0.8})
    publish_measured(plane, "two", recalls={"one": 0.7, "two": 0.5})
    plane.client.post("/v1/models/scenes/rollback")
    part = reader.get("/ui/?fragment=live_day").text
    assert part.count("scenes: ") == 2 * 3, "two publications and a rollback, in two widths"
    assert "version rolled back v1" in part
    assert "version published v2" in part
    assert "Mean R@1 of scenes" in part
