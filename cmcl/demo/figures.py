"""Recall, backward transfer and drift of a stream, computed from version manifests, and their tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from rich.table import Table

from cmcl.contract.version import Recall, VersionManifest
from cmcl.pictures import Memory, MemoryRow, forgetting_matrices


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

    def memory(self) -> Memory:
        """Return recall at 1 for pictures."""
        none_yet = [None] * len(self.names)
        rows = [
            MemoryRow(index + 1, name, [*row, *none_yet[len(row) :]])
            for index, (name, row) in enumerate(zip(self.names, self.at_1, strict=True))
        ]
        return Memory(self.names, rows)

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


def draw(models: Mapping[str, StreamFigures], path: Path) -> None:
    """Draw what earlier datasets lost in each model."""
    panels = {name: figures.memory() for name, figures in models.items()}
    path.write_text(forgetting_matrices(panels).svg(standalone=True) + "\n", encoding="utf-8")


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


def version_table(figures: StreamFigures, seconds_to_live: list[float]) -> Table:
    """Table of versions: recall, backward transfer, drift and time to live."""
    table = Table(
        title="improve: what each version learned, and what the earlier datasets lost",
        caption="R@1: the nearest row has the query's label, or the item of its partner where rows have none; "
        "R@10: a row with the item of its partner is among the ten nearest",
    )
    table.add_column("#")
    table.add_column("dataset", no_wrap=True)
    for heading in ("R@1", "R@10", "BWT R@1", "BWT R@10", "drift", "to live"):
        table.add_column(heading, justify="right")
    for index, name in enumerate(figures.names):
        table.add_row(
            str(index + 1),
            name,
            _percent(figures.at_1[index][index]),
            _percent(figures.at_10[index][index]),
            _points(backward_transfer(figures.at_1[: index + 1])),
            _points(backward_transfer(figures.at_10[: index + 1])),
            f"{max(figures.drift[index], default=0.0):.3f}",
            f"{seconds_to_live[index]:.1f} s",
        )
    return table


def comparison_table(
    models: Mapping[str, StreamFigures], to_live: Mapping[str, Sequence[float]]
) -> Table:
    """Table of the models at the end of the stream, a column for each."""
    table = Table(title="The same stream under both policies and without protection")
    table.add_column("final, mean over datasets")
    for name in models:
        table.add_column(name, justify="right")
    summaries = [figures.summary() for figures in models.values()]
    for label, key in (("R@1", "recall_at_1"), ("R@10", "recall_at_10")):
        table.add_row(label, *(_percent(each[key]) for each in summaries))
    for label, key in (("BWT R@1", "bwt_recall_at_1"), ("BWT R@10", "bwt_recall_at_10")):
        table.add_row(label, *(_points(each[key]) for each in summaries))
    table.add_row(
        "largest drift of old scores", *(f"{each.max_drift:.3f}" for each in models.values())
    )
    table.add_row("seconds to live, median", *(f"{median(to_live[name]):.1f}" for name in models))
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
