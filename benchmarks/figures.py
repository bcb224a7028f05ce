"""Figures of a method from its recall matrices, with equal weight for all datasets.

T datasets; `matrix[t][s]` is dataset s after version t + 1, `untrained[s]` under the seed's heads.
Recall, accuracy and their differences are fractions (a loss of 1.2 points is −0.012).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import fmean, stdev

from benchmarks.chain import Outcome
from benchmarks.joint import JointOutcome
from cmcl.contract.version import Recall

# None: accuracy of a dataset without labels.
Row = Sequence[float | None]
Matrix = list[list[float]]

_VALUES: Mapping[str, Callable[[Recall], float | None]] = {
    "recall_at_1": attrgetter("at_1"),
    "recall_at_5": attrgetter("at_5"),
    "recall_at_10": attrgetter("at_10"),
    "accuracy": attrgetter("accuracy"),
}
# In the order of the report. A chain has all of them, joint training only the first ones.
KINDS = ("", "bwt_", "learned_", "forward_")
METRICS = (
    *(kind + name for kind in KINDS for name in _VALUES),
    *(
        "last_accuracy",
        "mixed_recall_at_1",
        "mixed_recall_at_10",
        "max_drift",
        "mean_drift",
        "seconds",
    ),
)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the deviation of one seed is 0."""

    mean: float
    std: float


@dataclass(frozen=True)
class Figures:
    """Reported figures of one method.

        `metrics` has every name of METRICS, with None for unavailable values. `matrices` are means
    over the seeds, by `recall_at_1` and `recall_at_10`; joint training has one row. `epochs`: for
    joint training, the epochs at which each metric was best.
    """

    metrics: dict[str, Spread | None]
    matrices: dict[str, Matrix]
    epochs: dict[str, int] | None = None


def chain_figures(outcomes: Sequence[Outcome]) -> Figures:
    """Return figures of a continual method, from one outcome per seed."""
    runs = [_of_one_chain(outcome) for outcome in outcomes]
    metrics = {name: spread([run[name] for run in runs]) for name in METRICS}
    matrices = {
        name: _mean_matrix([values(name, outcome.matrix) for outcome in outcomes])
        for name in ("recall_at_1", "recall_at_10")
    }
    return Figures(metrics, matrices)


def joint_figures(outcomes: Sequence[JointOutcome]) -> Figures:
    """Return figures of joint training, each metric at its best number of epochs.

    The best is chosen by the mean over seeds on the test rows themselves: a generous upper bound.
    `seconds` are those until the best recall at 1.
    """
    metrics: dict[str, Spread | None] = dict.fromkeys(METRICS)
    epochs = {}
    for name in _VALUES:
        by_epochs = {
            epoch: spread([mean_of(values(name, [run.recalls[epoch]])[0]) for run in outcomes])
            for epoch in outcomes[0].recalls
        }
        measured = {epoch: found for epoch, found in by_epochs.items() if found}
        if measured:
            epochs[name] = max(measured, key=lambda epoch: measured[epoch].mean)
            metrics[name] = measured[epochs[name]]
    metrics["seconds"] = spread([run.seconds[epochs["recall_at_1"]] for run in outcomes])
    matrices = {
        name: _mean_matrix([values(name, [run.recalls[epochs[name]]]) for run in outcomes])
        for name in ("recall_at_1", "recall_at_10")
    }
    return Figures(metrics, matrices, epochs)


def values(name: str, matrix: Sequence[Sequence[Recall]]) -> list[list[float | None]]:
    """Return one field of every entry: `recall_at_1`, `recall_at_5`, `recall_at_10` or
    `accuracy`."""
    value = _VALUES[name]
    return [[value(recall) for recall in row] for row in matrix]


def backward_transfer(matrix: Sequence[Row]) -> float | None:
    """Return the mean over all but the last dataset of (at the end − when learned) (arXiv
    1706.08840)."""
    learned = _diagonal(matrix)
    return mean_of(_differences(matrix[-1][:-1], learned[:-1]))


def forward_transfer(matrix: Sequence[Row], untrained: Row) -> float | None:
    """Return the mean over all but the first of (just before it is learned − untrained) (same
    source)."""
    before = [matrix[dataset - 1][dataset] for dataset in range(1, len(matrix))]
    return mean_of(_differences(before, untrained[1:]))


def mean_of(row: Row) -> float | None:
    """Return the mean of the available values, or None."""
    there = [value for value in row if value is not None]
    return fmean(there) if there else None


def spread(runs: Row) -> Spread | None:
    """Return mean and deviation over seeds, or None if no seed has a value."""
    there = [value for value in runs if value is not None]
    if not there:
        return None
    return Spread(fmean(there), stdev(there) if len(there) > 1 else 0.0)


def _of_one_chain(outcome: Outcome) -> dict[str, float | None]:
    found: dict[str, float | None] = {
        "last_accuracy": outcome.matrix[-1][-1].accuracy,
        "mixed_recall_at_1": outcome.mixed[0],
        "mixed_recall_at_10": outcome.mixed[1],
        "max_drift": max(outcome.drifts, default=None),
        "mean_drift": mean_of(outcome.drifts),
        "seconds": outcome.seconds,
    }
    for name in _VALUES:
        matrix, untrained = values(name, outcome.matrix), values(name, [outcome.untrained])[0]
        found[name] = mean_of(matrix[-1])
        found[f"bwt_{name}"] = backward_transfer(matrix)
        found[f"learned_{name}"] = mean_of(_diagonal(matrix))
        found[f"forward_{name}"] = forward_transfer(matrix, untrained)
    return found


def _diagonal(matrix: Sequence[Row]) -> Row:
    return [row[place] for place, row in enumerate(matrix)]


def _differences(later: Row, earlier: Row) -> Row:
    """Return differences of available values. Whether a dataset has labels does not depend on the
    version."""
    pairs = zip(later, earlier, strict=True)
    return [now - then for now, then in pairs if now is not None and then is not None]


def _mean_matrix(matrices: Sequence[Sequence[Row]]) -> Matrix:
    """Return the elementwise mean over seeds."""
    seeds = [[[value or 0.0 for value in row] for row in matrix] for matrix in matrices]
    return [
        [fmean(entries) for entries in zip(*rows, strict=True)] for rows in zip(*seeds, strict=True)
    ]
