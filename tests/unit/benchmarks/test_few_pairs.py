"""Few pairs of a dataset, by the product's method and by methods that are tuned on them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.few_pairs import ALL_METHODS, improved, main, read
from benchmarks.folder import read_stream
from benchmarks.joint import closed_form_heads
from benchmarks.two_views import mean_reciprocal_rank
from cmcl.contract.model import ModelSpec
from tests.unit.benchmarks.command import Answer, answer_of
from tests.unit.benchmarks.tiny_stream import NAMES, write_stream
from workers.model.heads import PairedRows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(tmp_path_factory.mktemp("streams") / "tiny", NAMES[:1])


def run(folder: Path, *arguments: str) -> Answer:
    return answer_of(main, folder, "--json", "--out", folder.parent / "out", *arguments)


def test_every_method_has_its_recall_and_no_cell_is_measured_twice(folder: Path) -> None:
    answer = run(folder, "--pairs", "10,40", "--seeds", "1")
    assert answer.status == 0
    found = answer.document["streams"]["tiny"]
    assert list(found) == ["10", "40"]
    for by_method in found.values():
        assert list(by_method) == list(ALL_METHODS)
        # Four classes: chance is a quarter.
        assert all(each["recall_at_1"]["mean"] > 0.5 for each in by_method.values())
    assert "| 40 | " in (folder.parent / "out" / "few-pairs.md").read_text()
    cells = folder.parent / "out" / "few-pairs.cells.jsonl"
    before = cells.read_text()
    assert len(before.splitlines()) == 2 * len(ALL_METHODS)
    assert run(folder, "--pairs", "40", "--seeds", "1").status == 0
    assert cells.read_text() == before


def test_settings_are_compared_by_the_place_of_the_best_row_with_the_item() -> None:
    """Both ways, where rows 0 and 1 have the same second item and ties count against a row."""
    rows = PairedRows(
        torch.eye(3), torch.eye(3)[[0, 0, 1]], torch.arange(3), torch.tensor([0, 0, 1])
    )
    found = mean_reciprocal_rank(lambda first, second: (first, second), rows)
    # Row 2 comes before the item of row 1, and both others tie with that of row 2.
    there = (1 + 1 / 2 + 1 / 3) / 3
    # Row 1 comes before the item of the third query, and row 0 ties with it.
    back = (1 + 1 + 1 / 3) / 3
    assert found == pytest.approx((there + back) / 2)


def test_rows_in_their_span_are_learned_as_the_product_learns_them(folder: Path) -> None:
    stream = read_stream(folder)
    spec = ModelSpec.model_validate({"policy": "improve", "width": 16, "modalities": stream.widths})
    dataset = stream.datasets[0]
    dataset = replace(dataset, training=dataset.training.at(slice(0, 24)))
    heads = closed_form_heads([dataset], spec)
    first, second = improved(spec, dataset, dataset.training)
    ours = first @ second.mT
    rows, pair = dataset.held_out.rows, dataset.pair
    theirs = heads.embed(pair.first, rows.first_NI) @ heads.embed(pair.second, rows.second_NJ).mT
    both = torch.stack([ours.flatten(), theirs.flatten()])
    # Other random rows in the polish.
    assert float(torch.corrcoef(both)[0, 1]) > 0.99


def test_six_views_are_fifteen_datasets_of_the_same_digits(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(10), 200)[:, None]
    for view in "abcdef":
        values = np.hstack([random.normal(5, 2, (2000, 3)), label])
        np.savetxt(
            tmp_path / f"mfeat-{view}.csv", values, "%.3f", ",", header="0,1,2,3", comments=""
        )
    stream = read(tmp_path)
    assert len(stream.datasets) == 15
    first, last = stream.datasets[0], stream.datasets[-1]
    assert len(first.training) == len(first.held_out) == 1000
    labels = [each.held_out.labels_N for each in (first, last)]
    assert labels[0] is not None
    assert labels[1] is not None
    assert torch.equal(labels[0], labels[1])
    assert float(first.training.first_NI.mean(0).abs().max()) < 1e-6
