"""Recall, backward transfer and drift of a stream, computed from version manifests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from cmcl.contract.version import Recall, VersionManifest


@dataclass(frozen=True)
class StreamFigures:
    """Forgetting matrix of a stream and derived figures, as shares between 0 and 1.

    `at_1[i][j]`: recall of dataset j after version i + 1 (j ≤ i). Backward transfer (BWT) is the
    mean over earlier datasets of recall now minus recall when learned (arXiv 1706.08840).
    """

    names: list[str]
    at_1: list[list[float]]
    at_10: list[list[float]]
    drift: list[list[float]]

    @property
    def max_drift(self) -> float:
        """Return the largest relative drift of any earlier dataset in any version."""
        return max((value for row in self.drift for value in row), default=0.0)

    def summary(self) -> dict[str, float]:
        """Return the four figures of a method."""
        return {
            "recall_at_1": round(fmean(self.at_1[-1]), 4),
            "recall_at_10": round(fmean(self.at_10[-1]), 4),
            "bwt_recall_at_1": round(backward_transfer(self.at_1), 4),
            "bwt_recall_at_10": round(backward_transfer(self.at_10), 4),
        }


def stream_figures(versions: Sequence[VersionManifest]) -> StreamFigures:
    """Compute the figures of consecutive versions whose datasets have held-out rows."""
    return StreamFigures(
        names=[version.learned[-1].name for version in versions],
        at_1=_matrix(versions, lambda recall: recall.at_1),
        at_10=_matrix(versions, lambda recall: recall.at_10),
        drift=[
            [version.report.drift[old.dataset].since_learned for old in version.learned[:-1]]
            for version in versions
        ],
    )


def backward_transfer(matrix: Sequence[Sequence[float]]) -> float:
    """Return the mean over all but the last dataset of (now − when learned); 0 for one dataset."""
    last = matrix[-1]
    return fmean(last[j] - matrix[j][j] for j in range(len(last) - 1)) if len(last) > 1 else 0.0


def _matrix(
    versions: Sequence[VersionManifest], value: Callable[[Recall], float]
) -> list[list[float]]:
    return [
        [value(version.report.evaluation[old.dataset]) for old in version.learned]
        for version in versions
    ]
