"""Agreement and recall of encoders that are made of one."""

from pathlib import Path

import pytest

from benchmarks.encoder_compare import ENCODERS, main
from tests.unit.benchmarks.command import answer_of
from tests.unit.benchmarks.tiny_stream import NAMES, write_stream


def test_every_encoder_has_agreement_and_recall_and_no_dataset_is_measured_twice(
    tmp_path: Path,
) -> None:
    folder = write_stream(tmp_path / "tiny", NAMES[:1])
    out = tmp_path / "out"
    arguments = (folder, "--splits", "2", "--json", "--out", out)
    answer = answer_of(main, *arguments)
    assert answer.status == 0
    ((found,),) = answer.document["streams"].values()
    assert found["dataset"] == f"tiny/{NAMES[0]}"
    assert found["encoders"].keys() == ENCODERS.keys()
    agreements = [each["agreement"] for each in found["encoders"].values()]
    assert agreements == sorted(agreements, reverse=True)
    best = next(iter(found["encoders"].values()))
    highest = max(each["recall_at_10"] for each in found["encoders"].values())
    assert found["figures"]["lost"] == pytest.approx(highest - best["recall_at_10"])
    assert f"| {NAMES[0]} |" in (out / "encoder-compare.md").read_text()
    assert answer_of(main, *arguments).document["streams"] == answer.document["streams"]
    assert len((out / "encoder-compare.datasets.jsonl").read_text().splitlines()) == 1
