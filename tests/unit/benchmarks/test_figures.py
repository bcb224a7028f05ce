"""Figures against matrices made by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.chain import Outcome
from benchmarks.figures import Figures, Spread, chain_figures, joint_figures, spread
from benchmarks.joint import JointOutcome
from benchmarks.report import kept_shares
from benchmarks.stream import memories
from cmcl.contract.version import Recall

MATRIX = [[0.5, 0.1, 0.2], [0.4, 0.6, 0.3], [0.3, 0.7, 0.9]]
UNTRAINED = [0.0, 0.05, 0.1]


def recall(at_1: float, accuracy: float | None = None) -> Recall:
    return Recall(rows=8, at_1=at_1, at_5=at_1 / 2, at_10=at_1 / 4, accuracy=accuracy)


def outcome(matrix: Sequence[Sequence[Recall]], drifts: list[float]) -> Outcome:
    return Outcome(
        [recall(x) for x in UNTRAINED[: len(matrix)]],
        list(map(list, matrix)),
        drifts,
        2,
        (0.1, 0.4),
    )


def plain(shift: float = 0.0) -> Outcome:
    return outcome([[recall(x + shift) for x in row] for row in MATRIX], [0.1, 0.3])


def mean(value: Spread | None) -> float:
    assert value is not None
    return value.mean


def test_transfer_is_that_of_a_matrix_made_by_hand() -> None:
    metrics = chain_figures([plain()]).metrics
    assert mean(metrics["recall_at_1"]) == pytest.approx((0.3 + 0.7 + 0.9) / 3)
    assert mean(metrics["learned_recall_at_1"]) == pytest.approx((0.5 + 0.6 + 0.9) / 3)
    assert mean(metrics["bwt_recall_at_1"]) == pytest.approx((-0.2 + 0.1) / 2)
    assert mean(metrics["forward_recall_at_1"]) == pytest.approx((0.05 + 0.2) / 2)
    assert mean(metrics["bwt_recall_at_5"]) == pytest.approx(-0.05 / 2)
    assert mean(metrics["forward_recall_at_10"]) == pytest.approx(0.125 / 4)
    assert mean(metrics["max_drift"]) == 0.3
    assert mean(metrics["mean_drift"]) == pytest.approx(0.2)


def test_a_dataset_without_labels_has_no_part_in_accuracy() -> None:
    accuracies = [[0.5, None, 0.1], [0.4, None, 0.2], [0.2, None, 0.8]]
    matrix = [[recall(0.5, accuracy) for accuracy in row] for row in accuracies]
    metrics = chain_figures([outcome(matrix, [0.0, 0.0])]).metrics
    assert mean(metrics["accuracy"]) == pytest.approx((0.2 + 0.8) / 2)
    assert mean(metrics["bwt_accuracy"]) == pytest.approx(0.2 - 0.5)


def test_seeds_are_averaged_with_their_sample_deviation() -> None:
    figures = chain_figures([plain(), plain(0.02), plain(0.04)])
    final = figures.metrics["recall_at_1"]
    assert final is not None
    assert final.mean == pytest.approx(1.9 / 3 + 0.02)
    assert final.std == pytest.approx(0.02)
    assert np.allclose(figures.matrices["recall_at_1"], np.asarray(MATRIX) + 0.02)
    assert np.allclose(figures.matrices["recall_at_10"], (np.asarray(MATRIX) + 0.02) / 4)
    assert spread([0.7]) == Spread(0.7, 0.0)


def test_joint_reports_each_metric_at_its_own_best_epochs() -> None:
    by_epochs = {5: (0.4, 0.9), 12: (0.6, 0.7), 20: (0.5, 0.8)}
    runs = [
        JointOutcome(
            {
                epochs: [Recall(rows=8, at_1=at_1 + shift, at_5=at_1, at_10=at_10, accuracy=None)]
                for epochs, (at_1, at_10) in by_epochs.items()
            },
            {epochs: float(epochs) for epochs in by_epochs},
        )
        for shift in (0.0, 0.1)
    ]
    figures = joint_figures(runs)
    assert mean(figures.metrics["recall_at_1"]) == pytest.approx(0.65)
    assert mean(figures.metrics["recall_at_10"]) == pytest.approx(0.9)
    assert figures.epochs == {"recall_at_1": 12, "recall_at_5": 12, "recall_at_10": 5}
    assert mean(figures.metrics["seconds"]) == 12
    assert figures.matrices["recall_at_1"] == [[pytest.approx(0.65)]]
    assert figures.matrices["recall_at_10"] == [[pytest.approx(0.9)]]
    assert figures.metrics["bwt_recall_at_1"] is figures.metrics["accuracy"] is None


@given(arrays(np.float64, (4, 4), elements=st.floats(0.01, 1)))
def test_pictures_start_from_when_learned_and_leave_out_what_was_not(matrix_TT: np.ndarray) -> None:
    figures = Figures({}, {"recall_at_1": matrix_TT.tolist()}, None)
    memory = memories({"one": figures}, "recall_at_1", list("abcd"))["one"]
    learned_T, kept = np.diag(matrix_TT), kept_shares(memory)
    assert [each and each.recall for each in memory.when_learned] == pytest.approx(learned_T)
    for after in range(4):
        now, then = matrix_TT[after, : after + 1], learned_T[: after + 1]
        assert kept[after] == pytest.approx(now.mean() / then.mean())
        changes = memory.changes[after]
        assert changes[:after] == pytest.approx((now - then)[:after])
        assert set(changes[after:]) == {None}
