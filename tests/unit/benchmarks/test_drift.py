"""Queries of a dataset that is left out are told from others, and the page says how well."""

from pathlib import Path

import pytest

from benchmarks.drift import auroc, main
from tests.unit.benchmarks.tiny_stream import write_stream


def test_each_dataset_is_left_out_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_stream(tmp_path / "tiny")
    options = [
        "--windows",
        "3",
        "--false-alarms",
        "8",
        "--requests",
        "20",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([str(folder), *options]) == 0
    page = capsys.readouterr().out
    assert "| tiny | that differ |" in page


def test_auroc_counts_ties_half() -> None:
    assert auroc([2.0, 1.0], [1.0, 0.0]) == 0.875
