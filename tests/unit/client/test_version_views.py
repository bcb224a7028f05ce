"""The matrix of a version on a terminal names what each version learned, also what was unlearned since."""

import io

from rich.console import Console

from cmcl.cli.versions import matrix, outcomes_of
from cmcl.client import EvaluationRow, VersionSummary
from cmcl.contract.job import JobKind
from cmcl.contract.version import Recall
from tests.fakes.responses import response


def summary(version: int, name: str, kind: JobKind = "learn") -> VersionSummary:
    dataset = f"ds-{version}" if kind == "learn" else None
    about = {"version": version, "kind": kind, "dataset": dataset, "dataset_name": name}
    return response(VersionSummary, **about, pair={"first": "image", "second": "text"})


def test_a_dataset_that_was_unlearned_is_named_with_the_version_that_unlearned_it() -> None:
    outcomes = outcomes_of(
        [
            summary(1, "speech-fr"),
            summary(2, "views"),
            summary(3, "speech-fr", "unlearn"),
            summary(4, "speech-fr"),
            summary(5, "other@2", "merge"),
        ]
    )
    assert outcomes == {
        1: "speech-fr (unlearned in 3)",
        2: "views",
        3: "unlearned speech-fr",
        4: "speech-fr",
        5: "other@2",
    }
    recall = Recall(at_1=0.5, at_5=0.6, at_10=0.7, rows=9)
    rows = [
        EvaluationRow(version=1, learned="ds-1", recall={"ds-1": recall}),
        EvaluationRow(version=2, learned="ds-2", recall={"ds-1": recall, "ds-2": recall}),
        EvaluationRow(version=3, learned=None, recall={"ds-2": recall}),
    ]
    console = Console(file=io.StringIO(), width=120)
    console.print(matrix(rows, {"ds-2": "views"}, outcomes))
    assert isinstance(console.file, io.StringIO)
    shown = [
        [cell.strip() for cell in line.split("│")] for line in console.file.getvalue().splitlines()
    ]
    assert [line[1:3] for line in shown if len(line) > 3] == [
        ["1", "speech-fr (unlearned in 3)"],
        ["2", "views"],
        ["3", "unlearned speech-fr"],
    ]
