"""The command as a user types it, on three datasets of 64 rows."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from benchmarks.runs import known_methods
from benchmarks.stream import main
from tests.unit.benchmarks.command import Answer, answer_of
from tests.unit.benchmarks.tiny_stream import write_stream

SMALL = ("--width", "8", "--epochs", "2", "--joint-epochs", "1,3", "--seeds", "2")
FEW = ("--methods", "improve,joint")
MEASURED = ("recall_at_1", "recall_at_5", "recall_at_10", "accuracy")


def run(*arguments: str | Path) -> Answer:
    return answer_of(main, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(tmp_path_factory.mktemp("streams") / "tiny")


@pytest.fixture(scope="module")
def answer(folder: Path) -> Answer:
    """Of every known method."""
    return run(folder, *SMALL, "--json", "--jobs", "1", "--out", folder.parent / "one")


@pytest.fixture(scope="module")
def methods(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = answer.document["methods"]
    return found


def test_every_known_method_runs_as_itself_and_all_is_written(
    answer: Answer, methods: Mapping[str, Any], folder: Path
) -> None:
    assert answer.status == 0
    assert list(methods) == list(known_methods())
    protected = [method["mean_drift"] for name, method in methods.items() if name != "vanilla"]
    assert methods["vanilla"]["mean_drift"] not in protected
    out = folder.parent / "one"
    assert json.loads((out / "stream-tiny-8.json").read_text()) == answer.document
    page = (out / "stream-tiny-8.md").read_text()
    assert [name for name in methods if f"| {name} |" not in page] == []
    pictures = list(out.glob("*.svg"))
    assert len(pictures) == 4
    for picture in pictures:
        assert f"({picture.name})" in page
        assert ET.parse(picture).getroot().get("role") == "img"


def test_the_matrix_agrees_with_what_follows_from_it(methods: Mapping[str, Any]) -> None:
    for name in ("improve", "preserve", "vanilla"):
        for metric, key in (("recall_at_1", "matrix"), ("recall_at_10", "matrix_recall_at_10")):
            matrix = methods[name][key]
            assert [len(row) for row in matrix] == [3, 3, 3]
            diagonal = [matrix[place][place] for place in range(3)]
            assert methods[name][f"learned_{metric}"]["mean"] == pytest.approx(fmean(diagonal))
            assert methods[name][metric]["mean"] == pytest.approx(fmean(matrix[-1]))
            lost = [now - then for now, then in zip(matrix[-1][:2], diagonal[:2], strict=True)]
            assert methods[name][f"bwt_{metric}"]["mean"] == pytest.approx(fmean(lost))


def test_joint_has_one_row_and_its_best_epochs(methods: Mapping[str, Any]) -> None:
    joint = methods["joint"]
    assert [len(joint["matrix"]), len(joint["matrix"][0])] == [1, 3]
    assert joint["recall_at_1"]["mean"] == pytest.approx(fmean(joint["matrix"][0]))
    assert set(joint["epochs"]) == set(MEASURED)
    assert set(joint["epochs"].values()) <= {1, 3}
    assert joint["bwt_recall_at_1"] is joint["max_drift"] is joint["learned_accuracy"] is None


def test_preserve_is_another_method_than_improve(methods: Mapping[str, Any]) -> None:
    drifts = [methods[name]["max_drift"]["mean"] for name in ("improve", "preserve", "vanilla")]
    assert len(set(drifts)) == 3


def test_one_process_and_two_answer_equal_to_the_bit(
    methods: Mapping[str, Any], folder: Path
) -> None:
    two = run(folder, *SMALL, *FEW, "--json", "--jobs", "2", "--out", folder.parent / "two")
    assert two.status == 0
    here, there = (_without_seconds(found) for found in (methods, two.document["methods"]))
    assert there == {name: here[name] for name in there}


def _without_seconds(methods: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {metric: value for metric, value in method.items() if metric != "seconds"}
        for name, method in methods.items()
    }
