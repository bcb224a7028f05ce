"""The memory of a model: recall of each dataset in each version, of a short history and of a long one."""

from collections.abc import Iterator

import pytest
from sqlalchemy import insert, update

from cmcl.contract.version import Drift, Recall, VersionManifest
from service.database.queries.versions import from_manifest
from service.database.tables import models, versions
from tests.fakes.control_plane import ControlPlane
from tests.fakes.measured import publish_measured, recall, write_measured
from tests.unit.service.page.browser import Browser, rows_of, text_of
from tests.unit.service.test_unlearning import unlearn

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


def test_before_the_first_version_it_says_what_to_do(plane: ControlPlane, reader: Browser) -> None:
    text = text_of(reader.get(MEMORY).text)
    assert "The model has learned nothing yet" in text
    assert "cmcl dataset add FOLDER --model scenes --pair FIRST,SECOND" in text


def test_without_held_out_rows_it_says_how_to_have_some(
    plane: ControlPlane, reader: Browser
) -> None:
    publish_measured(plane, "one")
    publish_measured(plane, "two", drifts={"one": 0.25})
    page = reader.get(MEMORY).text
    text = text_of(page)
    assert "No dataset has held-out rows, so recall is not measured" in text
    assert "--evaluation-share 0.1" in text
    # Figures that need only moments are still shown.
    assert "25.0 % Largest drift" in text
    assert rows_of(page, "datasets")[0][2:] == ["no held-out rows", "25.0 %", "– none", "– none"]


def test_each_dataset_has_its_recall_then_and_now(plane: ControlPlane, reader: Browser) -> None:
    publish_measured(plane, "one", recalls={"one": 0.8})
    publish_measured(plane, "two", recalls={"one": 0.6, "two": 0.5}, losses={"one": (-0.5, -1.5)})
    publish_measured(
        plane,
        "three",
        recalls={"one": 0.7, "two": 0.625, "three": 0.9},
        drifts={"one": 0.2, "two": 0.1},
        losses={"one": (-0.75, -1.5)},
    )
    page = reader.get(MEMORY).text
    assert rows_of(page, "datasets") == [
        [
            "one image, text",
            "v1",
            *("80.0 %", "60.0 % in v2", "70.0 %", "−10.0 points"),
            *("20.0 %", "−0.75", "−1.5"),
        ],
        [
            "two image, text",
            "v2",
            *("50.0 %", "50.0 % in v2", "62.5 %", "+12.5 points"),
            *("10.0 %", "– none", "– none"),
        ],
        [
            "three image, text",
            "v3",
            *("90.0 %", "90.0 % in v3", "90.0 %", "– none"),
            *("– none", "– none", "– none"),
        ],
    ]
    text = text_of(page)
    assert "74.2 % Mean R@1" in text
    assert "+1.2 points Mean change" in text
    assert "Lost most one" in text
    assert "Largest drift one, no bound is set" in text
    # The matrix is a table as well: recall, and in brackets the change since learned.
    assert rows_of(page, "numbers-matrix")[2] == [
        "3",
        "three",
        "70.0 (−10.0)",
        "62.5 (+12.5)",
        "90.0",
    ]
    assert page.count("<svg") >= 8


@pytest.mark.parametrize(
    ("recalls", "figure", "sentence"),
    [
        ({"one": 0.827}, "0 Lost recall", "The earlier dataset, one, lost no R@1"),
        ({"one": 0.76}, "−4.0 points Lost most", "The earlier dataset, one, has changed by −4.0"),
        ({"one": 0.7998}, "0 Lost recall", "The earlier dataset, one, lost no R@1"),
        ({}, "– none Lost most nothing was measured twice", "The largest drift is 10.0 %, of one"),
    ],
    ids=["gained", "lost", "lost less than is shown", "not measured again"],
)
@pytest.mark.parametrize("path", ["memory", "versions/2"])
def test_one_earlier_dataset_is_lost_only_if_its_recall_fell(
    plane: ControlPlane,
    reader: Browser,
    path: str,
    recalls: dict[str, float],
    figure: str,
    sentence: str,
) -> None:
    publish_measured(plane, "one", recalls={"one": 0.8})
    publish_measured(plane, "two", recalls={"two": 0.5, **recalls})
    text = text_of(reader.get(f"/ui/models/scenes/{path}").text)
    assert figure in text
    assert sentence in text
    assert "1 earlier" not in text


@pytest.mark.parametrize("path", ["memory", "versions/3"])
def test_where_no_dataset_lost_recall_the_smallest_gain_is_no_loss(
    plane: ControlPlane, reader: Browser, path: str
) -> None:
    publish_measured(plane, "one", recalls={"one": 0.8})
    publish_measured(plane, "two", recalls={"one": 0.8, "two": 0.5})
    publish_measured(plane, "three", recalls={"one": 0.812, "two": 0.527, "three": 0.9})
    text = text_of(reader.get(f"/ui/models/scenes/{path}").text)
    assert "None of the 2 earlier datasets lost R@1" in text
    assert "0 Lost recall smallest change +1.2 points, one" in text
    assert "Lost most" not in text


def test_datasets_that_are_left_after_an_unlearning_are_counted_as_earlier_ones(
    plane: ControlPlane, reader: Browser
) -> None:
    publish_measured(plane, "one", recalls={"one": 0.8})
    dataset = publish_measured(plane, "two", recalls={"one": 0.8, "two": 0.5})
    job = unlearn(plane, dataset).json()["id"]
    write_measured(plane, job, recalls={"one": 0.81})
    plane.run_to_end(job)
    text = text_of(reader.get(MEMORY).text)
    assert "The earlier dataset, one, lost no R@1 since it was learned (+1.0 points)" in text


def test_recall_among_ten_is_another_view(long: Browser) -> None:
    text = text_of(long.get(f"{MEMORY}?at=10").text)
    assert "Mean R@10" in text
    assert "Mean R@1 " not in text


def test_a_long_history_is_thinned_and_changes_are_still_those_since_learned(
    long: Browser,
) -> None:
    answer = long.get(MEMORY)
    text = text_of(answer.text)
    assert "Versions 1 to 102, one in 4" in text
    # The first dataset was learned in a version that is not shown.
    matrix = rows_of(answer.text, "numbers-matrix")
    assert [row[0] for row in matrix][:2] == ["2", "6"]
    assert matrix[0][2] == "89.9 (−0.1)"
    assert "−10.1 points Lost most data-1" in text
    assert len(answer.content) < 150_000


def test_versions_that_follow_each_other_can_be_turned_over(long: Browser) -> None:
    page = long.get(f"{MEMORY}?to=102").text
    assert [row[0] for row in rows_of(page, "numbers-matrix")] == [str(n) for n in range(71, 103)]
    assert "71 to 102" in text_of(page)
    assert "to=70" in page
    page = long.get(f"{MEMORY}?to=70").text
    assert [row[0] for row in rows_of(page, "numbers-matrix")][-1] == "70"
    assert "to=102" in page
    # An address from another model, or one that was typed, leads to the newest.
    assert "71 to 102" in text_of(long.get(f"{MEMORY}?to=2147483647").text)


def test_many_datasets_come_in_pages(long: Browser) -> None:
    page = long.get(f"{MEMORY}?rows=50").text
    assert len(rows_of(page, "datasets")) == 10
    first = rows_of(long.get(MEMORY).text, "datasets")
    assert (len(first), first[0][0].split()[0]) == (50, "data-1")
    columns = rows_of(long.get(f"{MEMORY}?columns=48").text, "numbers-matrix")
    assert {len(row) for row in columns} == {14}
    assert (
        '<details class="aside" id="numbers-matrix" open>' in long.get(f"{MEMORY}?columns=48").text
    )


@pytest.mark.parametrize(
    "query", ["to=0", "to=x", "at=5", "rows=-1", "columns=1e9", "to=9999999999"]
)
def test_queries_that_cannot_be_are_refused(long: Browser, query: str) -> None:
    answer = long.get(f"{MEMORY}?{query}")
    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.text


def test_the_live_part_is_that_of_the_page(long: Browser) -> None:
    part = long.get(f"{MEMORY}?to=70&fragment=live_memory").text
    assert "to=102" in part
    assert rows_of(part, "datasets") == rows_of(long.get(f"{MEMORY}?to=70").text, "datasets")
