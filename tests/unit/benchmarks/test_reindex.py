"""The re-indexing benchmark on three datasets of 64 rows: its figures against brute force."""

import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch

from benchmarks.folder import read_stream
from benchmarks.reindex import LearnedDataset, learn_stream, main, reindexed
from benchmarks.reindex_report import COLUMNS, Reindexed
from cmcl.contract.model import ModelSpec, Policy
from tests.unit.benchmarks.command import Answer, answer_of
from tests.unit.benchmarks.tiny_stream import NAMES, write_stream
from workers.model.evaluation import measure
from workers.model.rows import PairedRows

NARROW, ROOMY = 6, 16


def run(*arguments: str | Path) -> Answer:
    return answer_of(main, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(tmp_path_factory.mktemp("streams") / "tiny")


@pytest.fixture(scope="module")
def same_rows(folder: Path) -> Path:
    """Held-out rows are the training rows: what moments say is then exact."""
    copy = folder.parent / "same"
    shutil.copytree(folder, copy)
    for path in copy.glob("*.train.parquet"):
        shutil.copy(path, path.with_name(path.name.replace("train", "test")))
    return copy


def learnt_from(folder: Path, width: int) -> list[LearnedDataset]:
    stream = read_stream(folder)
    training = {"epochs": 6, "batch_size": 16, "learning_rate": 1e-2}
    model = {"width": width, "modalities": stream.widths, "training": training}
    # Solved heads take the mean of a modality off, so they never have full column rank.
    policy = {"policy": "preserve"} if width == ROOMY else {}
    return learn_stream(stream.datasets, ModelSpec.model_validate({**model, **policy}))


@pytest.fixture(scope="module")
def learnt(same_rows: Path) -> list[LearnedDataset]:
    return learnt_from(same_rows, NARROW)


@pytest.fixture(scope="module")
def found(learnt: list[LearnedDataset]) -> dict[str, Reindexed]:
    return reindexed(learnt)


def test_on_the_rows_of_the_moments_predictions_are_exact(found: dict[str, Reindexed]) -> None:
    assert list(found) == list(NAMES[:-1])
    for one in found.values():
        figures = one.figures
        for name in ("drift", "mixed", "own"):
            assert figures[f"{name}_predicted"] > 0.01
            assert figures[f"{name}_measured"] == pytest.approx(
                figures[f"{name}_predicted"], rel=1e-4
            )
    # The moment of the first dataset of a modality is of these rows alone.
    for side in found[NAMES[0]].sides.values():
        assert side.measured.error == pytest.approx(side.error_on_rows, rel=1e-4)
        assert side.predicted_error > side.error_on_rows


def test_predicted_drift_is_that_of_the_certificate(
    learnt: list[LearnedDataset], found: dict[str, Reindexed]
) -> None:
    for one in learnt[:-1]:
        drift = one.remembered.drift(learnt[-1].model_state.heads)
        assert found[one.dataset.name].predicted.both_new == pytest.approx(drift)


def test_recall_with_one_version_is_that_of_the_product(
    learnt: list[LearnedDataset], found: dict[str, Reindexed]
) -> None:
    for one in learnt[:-1]:
        recalls = found[one.dataset.name].recall_at_10
        for name, model_state in (
            ("both_old", one.model_state),
            ("both_new", learnt[-1].model_state),
        ):
            expected = measure(model_state.heads, one.dataset.pair, one.dataset.held_out)
            assert recalls[name] == pytest.approx(expected.at_10)


def test_the_old_index_is_searched_with_new_queries(
    learnt: list[LearnedDataset], found: dict[str, Reindexed]
) -> None:
    now = learnt[-1].model_state.heads
    for one in learnt[:-1]:
        rows, then, (first, second) = (
            one.dataset.held_out.rows,
            one.model_state.heads,
            (one.dataset.pair.modalities),
        )
        sides = ((first, rows.first_NI), (second, rows.second_NJ))
        hits = sum(
            _hits(now.embed(*query) @ then.embed(*stored).mT, rows)
            for query, stored in (sides, sides[::-1])
        )
        expected = hits / (2 * len(rows))
        assert found[one.dataset.name].recall_at_10["old_index"] == pytest.approx(expected)


def _hits(scores_NN: torch.Tensor, rows: PairedRows) -> int:
    """Queries with their partner, or one that looks like it, among the ten best; row by row."""
    hits = 0
    for row, best in enumerate(scores_NN.topk(10, dim=1).indices.tolist()):
        firsts, seconds = rows.first_keys_N[best], rows.second_keys_N[best]
        hits += bool(
            ((firsts == rows.first_keys_N[row]) | (seconds == rows.second_keys_N[row])).any()
        )
    return hits


def test_a_roomy_model_migrates_as_if_encoded_again(folder: Path) -> None:
    for one in reindexed(learnt_from(folder, ROOMY)).values():
        assert all(side.exact for side in one.sides.values())
        assert one.figures["cosine_percentile_1"] > 1 - 1e-5
        assert one.figures["cosine_unmigrated"] < 0.999
        assert one.recall_at_10["migrated"] == one.recall_at_10["both_new"]


@pytest.fixture(scope="module")
def answer(folder: Path) -> Answer:
    return run(folder, "--width", "6", "--epochs", "2", "--json", "--out", folder.parent / "out")


def test_the_last_line_has_every_policy_and_figure(answer: Answer) -> None:
    document = answer.document
    assert answer.status == 0
    assert (document["stream"], document["width"], document["seed"]) == ("tiny", 6, 0)
    assert document["configuration"]["batch_size"] == 64
    assert list(document["methods"]) == list(get_args(Policy))
    names = {name for _, name in COLUMNS}
    for method in document["methods"].values():
        assert list(method["figures"]) == list(method["datasets"]) == list(NAMES[:-1])
        assert all(set(figures) == names for figures in method["figures"].values())
        values = [figures["drift_predicted"] for figures in method["figures"].values()]
        assert method["mean"]["drift_predicted"] == pytest.approx(sum(values) / len(values))
    drifts = {method["mean"]["drift_predicted"] for method in document["methods"].values()}
    assert len(drifts) == len(get_args(Policy))
