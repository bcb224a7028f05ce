"""The command as a user types it, on three datasets of 64 rows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from benchmarks.figures import METRICS
from benchmarks.runs import known_methods
from benchmarks.stream import main
from tests.unit.benchmarks.command import Answer, answer_of
from tests.unit.benchmarks.tiny_stream import NAMES, write_stream

SMALL = ("--width", "8", "--epochs", "2", "--joint-epochs", "1,3", "--seeds", "2")
FEW = ("--methods", "nullspace,nullspace_preserve,vanilla,joint")
MEASURED = ("recall_at_1", "recall_at_5", "recall_at_10", "accuracy")


def run(*arguments: str | Path) -> Answer:
    return answer_of(main, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(tmp_path_factory.mktemp("streams") / "tiny")


@pytest.fixture(scope="module")
def answer(folder: Path) -> Answer:
    return run(folder, *SMALL, *FEW, "--json", "--jobs", "1", "--out", folder.parent / "one")


@pytest.fixture(scope="module")
def methods(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = answer.document["methods"]
    return found


def test_the_last_line_has_every_field(answer: Answer, methods: Mapping[str, Any]) -> None:
    document = answer.document
    assert answer.status == 0
    assert (document["stream"], document["width"], document["seeds"]) == ("tiny", 8, 2)
    assert document["datasets"] == list(NAMES)
    assert document["failures"] == []
    assert list(methods) == FEW[1].split(",")
    for method in methods.values():
        assert {*METRICS, "matrix", "matrix_recall_at_10"} <= set(method)
    for name in METRICS:
        assert set(methods["nullspace"][name]) == {"mean", "std"}


def test_all_shares_are_between_0_and_1(methods: Mapping[str, Any]) -> None:
    for method in methods.values():
        assert all(0 <= method[name]["mean"] <= 1 for name in MEASURED)
        rows = [*method["matrix"], *method["matrix_recall_at_10"]]
        assert all(0 <= share <= 1 for row in rows for share in row)
        assert method["seconds"]["mean"] > 0


def test_the_matrix_agrees_with_what_follows_from_it(methods: Mapping[str, Any]) -> None:
    for name in ("nullspace", "nullspace_preserve", "vanilla"):
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
    drifts = [methods[name]["max_drift"]["mean"] for name in FEW[1].split(",")[:3]]
    assert len(set(drifts)) == 3


def test_one_process_and_two_answer_equal_to_the_bit(answer: Answer, folder: Path) -> None:
    two = run(folder, *SMALL, *FEW, "--json", "--jobs", "2", "--out", folder.parent / "two")
    assert two.status == 0
    assert _without_seconds(two.document) == _without_seconds(answer.document)


def test_results_lie_in_the_folder_that_was_named(answer: Answer, folder: Path) -> None:
    out = folder.parent / "one"
    files = {path.name: path for path in out.iterdir()}
    assert sorted(files) == [
        "stream-tiny-8-forgetting-recall-at-1.png",
        "stream-tiny-8-forgetting-recall-at-10.png",
        "stream-tiny-8-retention.png",
        "stream-tiny-8.json",
        "stream-tiny-8.md",
    ]
    assert json.loads(files["stream-tiny-8.json"].read_text()) == answer.document
    page = files["stream-tiny-8.md"].read_text()
    for part in ("## Question", "## Machine", "## Configuration", "## Result", "| vanilla |"):
        assert part in page
    for picture in (path for path in files if path.endswith(".png")):
        assert f"({picture})" in page
        assert files[picture].read_bytes().startswith(b"\x89PNG")


def test_progress_and_a_smaller_batch_are_told_on_stderr(answer: Answer) -> None:
    assert "batches have 64 rows, not 128" in answer.stderr
    assert "8 runs over 3 datasets" in answer.stderr
    assert "[8/8]" in answer.stderr


def test_without_json_people_get_the_table_alone(folder: Path) -> None:
    out = folder.parent / "table"
    order = ("--order", "reversed", "--name", "other", "--jobs", "1")
    answer = run(folder, *SMALL[:-2], "--seeds", "1", "--methods", "vanilla", *order, "--out", out)
    assert answer.status == 0
    assert "vanilla" in answer.stdout
    assert "{" not in answer.stdout
    document = json.loads((out / "stream-other-8-reversed.json").read_text())
    assert document["datasets"] == list(NAMES)[::-1]


def test_every_known_method_runs_as_itself(folder: Path) -> None:
    out = folder.parent / "all"
    answer = run(folder, *SMALL[:-2], "--seeds", "1", "--jobs", "1", "--json", "--out", out)
    assert answer.status == 0
    methods = answer.document["methods"]
    assert list(methods) == list(known_methods())
    unprotected = methods.pop("vanilla")["mean_drift"]
    assert all(method["mean_drift"] != unprotected for method in methods.values())


def test_an_unknown_method_is_answered_with_the_known(folder: Path) -> None:
    answer = run(folder, "--methods", "vanilla,magic")
    assert (answer.status, answer.stdout) == (2, "")
    assert "unknown method 'magic'" in answer.stderr
    assert all(name in answer.stderr for name in known_methods())
    assert len(answer.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["DIR", "--order", "up"], "order 'up'"),
        (["DIR", "--seeds", "0"], "'0' is no whole number of at least 1"),
        (["DIR", "--width", "1"], "width: Input should be greater than or equal to 2, got 1"),
        (["DIR", "--epochs", "0"], "training.epochs: Input should be"),
        (["DIR", "--conditioning", "2"], "conditioning: Input should be less than or equal to 1"),
        (["DIR", "--name", "a/b"], "name 'a/b'"),
        (["DIR", "--joint-epochs", "5,x"], "'x' is no whole number"),
        (["DIR", "--out", "/proc/none"], "/proc/none"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    folder: Path, arguments: Sequence[str], words: str
) -> None:
    answer = run(*(str(folder) if one == "DIR" else one for one in arguments))
    assert (answer.status, answer.stdout) == (2, "")
    line = answer.stderr.splitlines()[-1]
    assert line.startswith("benchmarks.stream: ")
    assert words in line
    assert "Traceback" not in answer.stderr


def _without_seconds(document: dict[str, Any]) -> dict[str, Any]:
    for method in document["methods"].values():
        del method["seconds"]
    return document
