"""Rendering of pages with data that the fake trainer does not produce."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console, RenderableType

from cmcl.cli.console import Columns, as_text, fields, table
from cmcl.cli.datasets import dataset_view, report_view
from cmcl.cli.models import capacity_view
from cmcl.cli.options import name_of
from cmcl.cli.versions import capacity, matrix, not_measured, recall_of_version, score_errors
from cmcl.client import Dataset, EvaluationRow, FreeShare, ModalityCapacity, ModelCapacity
from cmcl.contract.version import HeadCapacity, Recall
from tests.fakes.responses import response

AT = datetime(2026, 11, 24, tzinfo=UTC)


def drawn(page: RenderableType, width: int = 100, colours: bool = False) -> str:
    console = Console(width=width, color_system="truecolor" if colours else None, _environ={})
    with console.capture() as capture:
        console.print(page)
    return capture.get()


def row(version: int, learned: str, **at_1: float) -> EvaluationRow:
    recall = {
        name: Recall(rows=10, at_1=value, at_5=value, at_10=value) for name, value in at_1.items()
    }
    return EvaluationRow(version=version, learned=learned, recall=recall)


ROWS = [row(1, "a", a=0.9), row(2, "b", a=0.88, b=0.5), row(3, "c", a=0.7, b=0.52)]
NAMES = {"a": "birds", "b": "[bold]bees", "c": "cats"}


def test_a_dataset_that_was_not_measured_is_shown_with_the_reason() -> None:
    (line,) = not_measured({"a": "there is no such object"}, NAMES)
    assert drawn(line).strip() == "birds was not measured: there is no such object"


def test_a_matrix_shows_the_change_of_each_dataset_since_it_was_learned() -> None:
    text = drawn(matrix(ROWS, NAMES, {}))
    assert [cells(line) for line in text.splitlines() if line.startswith("│")] == [
        ["1", "birds", "90.0", ""],
        ["2", "[bold]bees", "88.0 (-2.0)", "50.0"],
        ["3", "cats", "70.0 (-20.0)", "52.0 (+2.0)"],
    ]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_recall_is_labelled_with_its_criterion() -> None:
    """With labels, a row of the same label counts as a hit at 1, and there is an accuracy."""
    labelled = Recall(rows=10, at_1=0.9, at_5=0.9, at_10=0.9, accuracy=0.8)
    own = Recall(rows=10, at_1=0.5, at_5=0.6, at_10=0.7, own_at_1=0.5, own_at_10=0.7)
    repeated = own.model_copy(update={"own_at_1": 0.4})
    measured = {"a": labelled, "b": own, "c": repeated}
    rows = [EvaluationRow(version=1, learned="a", recall=measured)]
    text = drawn(matrix(rows, NAMES, {}), width=160)
    assert "birds (same label)" in text
    assert "[bold]bees (own row)" in text
    assert "cats (equal item)" in text


def test_a_version_has_recall_at_one_and_ten_by_item_and_by_own_row() -> None:
    found = Recall(rows=951, at_1=0.412, at_5=0.6, at_10=0.731, own_at_1=0.381, own_at_10=0.702)
    older = Recall(rows=10, at_1=0.5, at_5=0.6, at_10=0.7)
    text = drawn(recall_of_version(3, {"a": found, "b": older}, NAMES))
    assert [cells(line) for line in text.splitlines() if line.startswith("│")] == [
        ["birds", "951", "41.2", "73.1", "38.1", "70.2"],
        ["[bold]bees", "10", "50.0", "70.0", "-", "-"],
    ]


def test_errors_of_compressed_vectors_are_a_table() -> None:
    (view,) = score_errors({"a": {"bit": 0.0757, "64": 0.0125}}, NAMES)
    text = drawn(view)
    assert "first 64" in text
    assert [cells(line) for line in text.splitlines() if line.startswith("│")] == [
        ["birds", "0.076", "0.013"]
    ]
    assert score_errors({}, NAMES) == []


def test_without_held_out_rows_there_is_no_matrix() -> None:
    assert "not measured" in drawn(matrix([row(1, "a")], NAMES, {}))


def test_capacity_is_a_bar() -> None:
    head = HeadCapacity(
        free_share=0.25, input_directions=3, input_width=9, output_directions=2, output_width=8
    )
    text = drawn(capacity({"image": head}))
    assert f"{'█' * 5}{'░' * 15} 25 %" in text
    assert "3 of 9" in text


def test_room_is_shown_with_its_forecast() -> None:
    head = HeadCapacity(
        free_share=0.4, input_directions=3, input_width=9, output_directions=2, output_width=8
    )
    history = [
        FreeShare(version=1, free_share=0.8, learned=True),
        FreeShare(version=2, free_share=0.4, learned=True),
    ]
    room = ModalityCapacity(now=head, datasets_left=2, taken_per_dataset=0.5, history=history)
    modalities = {"image": room, "audio": response(ModalityCapacity, now=head, history=[])}
    text = drawn(
        capacity_view(response(ModelCapacity, version=2, full_below=0.1, modalities=modalities))
    )
    assert "│ image    │ 80 %        │ 40 %     │ 50 %  │ 2             │" in text
    assert "│ audio    │ -           │ 40 %     │ -     │ -             │" in text
    nothing = ModelCapacity(model="m", version=None, full_below=0.1, modalities={}, remark="solved")
    assert drawn(capacity_view(nothing)).split() == [
        "m:",
        "no",
        "capacity",
        "is",
        "measured",
        "solved",
    ]


class Named(BaseModel):
    """A row of a table."""

    name: str
    value: Any = None


COLUMNS: Columns[Named] = {"name": lambda item: item.name, "value": lambda item: item.value}


def test_a_table_is_a_list_of_values_where_the_terminal_is_narrow() -> None:
    items = [Named(name="job-0123456789ab", value="published"), Named(name="job-2")]
    wide, narrow = (drawn(table(items, COLUMNS), width) for width in (60, 20))
    assert "│ job-0123456789ab │ published │" in wide
    assert "│" not in narrow
    assert "name   job-0123456789ab".replace(" ", "") in narrow.replace(" ", "").replace("\n", "")


LONG: Columns[Named] = {
    "job": lambda item: item.name,
    "created": lambda _: AT,
    "reason": lambda item: item.value,
}


@pytest.mark.parametrize("width", range(36, 90, 3))
def test_words_of_a_table_are_never_truncated(width: int) -> None:
    items = [Named(name="job-0123456789ab", value=f"its file {'x' * 70} has too few rows")]
    text = drawn(table(items, LONG), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "job-0123456789ab" in text
    assert "2026-11-2" in text
    assert text.count("x") == 70, "prose folds, and is not cut either"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        (0, "0"),
        (0.5, "0.500"),
        ("[red]x[/red]", "[red]x[/red]"),
        (AT, f"{AT.astimezone():%Y-%m-%d %H:%M:%S} {AT.astimezone().tzname()}"),
    ],
)
def test_values_are_shown_without_markup(value: Any, text: str) -> None:
    assert as_text(value).plain == text
    assert text in drawn(fields({"it": value}))


def dataset(**fields: Any) -> Dataset:
    pair = {"first": "image", "second": "text"}
    return response(Dataset, name="birds", pair=pair, created_at=AT, **fields)


def test_a_report_shows_rows_advice_and_familiarity() -> None:
    report: Mapping[str, Any] = {
        "version": 1,
        "pair": ["image", "text"],
        "rows": 90,
        "evaluation_rows": 8,
        "refusals": [],
        "findings": {"image": FINDINGS},
        "advice": ["text: half of its rows are [the same]"],
    }
    shown = dataset(report=report, rejected=REJECTED)
    for text in (drawn(report_view(shown)), drawn(dataset_view(shown))):
        assert "│ image    │ 90   │ 0.200" in text
        assert "90 rows to train on, 8 held out" in text
        assert "• text: half of its rows are [the same]" in text
        assert "birds.tar, b-7.png: the picture is cut off" in text


def test_a_dataset_that_cannot_be_prepared_has_a_reason_instead_of_a_report() -> None:
    assert drawn(report_view(dataset(quarantine_reason="no rows [at all]"))) == "no rows [at all]\n"


def test_rows_that_were_left_out_are_counted_and_the_first_ones_named() -> None:
    text = drawn(dataset_view(dataset(rejected=REJECTED)))
    lines = ["22 rows", "b-7.png: the picture is cut off", "m.csv line 9: no id", "... 20 more"]
    assert [line for line in lines if line not in text] == []


def test_encoders_of_a_dataset_are_shown_and_missing_ones_are_undeclared() -> None:
    clip = {"kind": "open-clip", "adapter": 1, "model": "ViT-B-32", "takes": "image", "width": 4}
    text = drawn(dataset_view(dataset(encoders={"image": clip, "text": "undeclared"})))
    assert "image open-clip ViT-B-32, text undeclared" in text
    assert "encoders        -" in drawn(dataset_view(dataset()))


REJECTED = {
    "rows": 22,
    "first": [
        {
            "id": "b-7",
            "file": "upload:up-1",
            "row": 7,
            "place": "birds.tar, b-7.png",
            "reason": "the picture is cut off",
        },
        {"id": None, "file": "upload:up-1", "row": 7, "place": "m.csv line 9", "reason": "no id"},
    ],
}
FINDINGS = {
    "rows": 90,
    "width": 4,
    "duplicate_rows": 0,
    "constant_columns": 0,
    "rank_one": False,
    "familiarity": 0.2,
}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/Birds of 2026.parquet", "birds-of-2026"),
        ("s3://bucket/path/pairs_000.parquet", "pairs-000"),
        ("file:///a/b.c.d", "b"),
        ("x" * 80, "x" * 48),
        ("x" * 47 + "-y", "x" * 47),
    ],
)
def test_a_dataset_without_a_name_is_named_after_its_files(source: str, name: str) -> None:
    assert name_of(source) == name
