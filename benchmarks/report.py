"""Output of the stream benchmark: a JSON document, tables for the terminal, and a Markdown page."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.command_line import listed, table
from benchmarks.figures import Figures, Spread
from benchmarks.folder import Stream
from benchmarks.runs import ALONE
from cmcl.contract import DISTRIBUTION
from cmcl.contract.model import ModelSpec
from cmcl.pictures import Line, Memory, Picture, lines
from cmcl.pictures.scales import percent
from cmcl.pictures.svg import brief

_CPU_FILE, _MEMORY_FILE = Path("/proc/cpuinfo"), Path("/proc/meminfo")
_POINTS = 100
_NARROWEST = 110
# Columns of the two tables: heading and metric.
FINAL: Mapping[str, str] = {
    "R@1": "recall_at_1",
    "R@5": "recall_at_5",
    "R@10": "recall_at_10",
    "mixed R@1": "mixed_recall_at_1",
    "mixed R@10": "mixed_recall_at_10",
    "accuracy": "accuracy",
    "BWT R@1": "bwt_recall_at_1",
    "BWT R@10": "bwt_recall_at_10",
    "BWT acc.": "bwt_accuracy",
}
LEARNING: Mapping[str, str] = {
    "learned R@1": "learned_recall_at_1",
    "learned R@10": "learned_recall_at_10",
    "forward R@1": "forward_recall_at_1",
    "forward R@10": "forward_recall_at_10",
    "max drift": "max_drift",
    "mean drift": "mean_drift",
    "seconds": "seconds",
}
_NOT_POINTS = {"max_drift", "mean_drift", "seconds"}


@dataclass(frozen=True)
class Failure:
    """A failed run."""

    method: str
    seed: int
    error: str


@dataclass(frozen=True)
class Report:
    """Results of all runs. `example` is the spec of one run, for the settings that all share."""

    stream: Stream
    order: str
    seeds: int
    example: ModelSpec
    joint_epochs: tuple[int, ...]
    methods: Mapping[str, Figures]
    failures: Sequence[Failure]

    @property
    def stem(self) -> str:
        """Common prefix of the file names."""
        order = "" if self.order == "forward" else "-" + self.order.replace(":", "-")
        return f"stream-{self.stream.name}-{self.example.width}{order}"

    @property
    def names(self) -> list[str]:
        """Names of the datasets in the order in which they were learned."""
        return [dataset.name for dataset in self.stream.datasets]


def document(report: Report) -> dict[str, Any]:
    """Return the JSON document. README.md describes its fields."""
    return {
        "stream": report.stream.name,
        "width": report.example.width,
        "seeds": report.seeds,
        "methods": {name: _method(figures) for name, figures in report.methods.items()},
        "order": report.order,
        "datasets": report.names,
        "modalities": report.stream.widths,
        "configuration": configuration(report),
        "machine": machine(),
        "failures": [asdict(failure) for failure in report.failures],
    }


def _method(figures: Figures) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: asdict(value) if value else None for name, value in figures.metrics.items()
    }
    found["matrix"] = figures.matrices["recall_at_1"]
    found["matrix_recall_at_10"] = figures.matrices["recall_at_10"]
    if figures.epochs is not None:
        found["epochs"] = figures.epochs
    return found


def configuration(report: Report) -> dict[str, Any]:
    """Return the settings that all runs share."""
    spec = report.example
    return {
        **spec.training.model_dump(mode="json"),
        "joint_epochs": list(report.joint_epochs),
    }


def machine() -> dict[str, Any]:
    """Return hardware and package versions."""
    return {
        "cpu": _field(_CPU_FILE, "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int((_field(_MEMORY_FILE, "MemTotal") or "0").split()[0]) / 2**20, 1),
        "python": platform.python_version(),
        "cmcl": version(DISTRIBUTION),
        **{package: version(package) for package in ("torch", "numpy")},
    }


def _field(path: Path, name: str) -> str | None:
    """Return the first value of that name in a file of /proc, or None."""
    lines = path.read_text().splitlines() if path.is_file() else []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(found, None)


def print_tables(report: Report, console: Console) -> None:
    """Print two tables that fit into 110 columns."""
    # A pipe has no width, and columns would be cut at the default of 80.
    console.width = max(console.width, _NARROWEST)
    title = f"{report.stream.name}, width {report.example.width}, seeds: {report.seeds}"
    for columns in (FINAL, LEARNING):
        shown = Table("method", title=escape(title), box=None, title_justify="left")
        for heading in columns:
            shown.add_column(heading, justify="right", no_wrap=True)
        for name, row in rows(report, columns):
            shown.add_row(name, *row)
        console.print(shown)
        title = ""
    for remark in _remarks(report):
        console.print(remark, soft_wrap=True, markup=False, highlight=False)


def rows(report: Report, columns: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Return name and cells of each method, in percentage points except drift and seconds."""
    return [
        (name, [cell(metric, figures.metrics[metric]) for metric in columns.values()])
        for name, figures in report.methods.items()
    ]


def cell(metric: str, value: Spread | None) -> str:
    """Format a figure with its deviation, or a dash."""
    if value is None:
        return "–"
    if metric == "seconds":
        return f"{value.mean:.0f} ± {value.std:.0f}"
    if metric in _NOT_POINTS:
        return f"{value.mean:.2f} ± {value.std:.2f}"
    sign = "+" if metric.startswith(("bwt", "forward")) else ""
    return f"{value.mean * _POINTS:{sign}.1f} ± {value.std * _POINTS:.1f}"


def markdown(report: Report, pictures: Sequence[Path]) -> str:
    """Render the page."""
    title = f"# Stream {report.stream.name}, width {report.example.width}, {report.order}"
    question = (
        f"{len(report.names)} datasets are learned one after another. How well is each retrieved "
        "at the end (R@1, R@5, R@10, class accuracy), how much was lost since it was learned (BWT)"
        ", how well was it learned, and how far did its scores move (drift)?"
    )
    sections = [
        f"{title}\n\n## Question\n{question}",
        "## Machine\n" + listed(machine()),
        "## Configuration\n" + listed(_described(report)),
        "## Result\n" + _result(report),
        "## Pictures\n" + "\n\n".join(f"![{path.stem}]({path.name})" for path in pictures),
    ]
    return "\n\n".join(sections) + "\n"


def _described(report: Report) -> dict[str, Any]:
    return {
        "datasets, in order": ", ".join(report.names),
        "modalities and widths": ", ".join(f"{m} {w}" for m, w in report.stream.widths.items()),
        "seeds": f"{report.seeds}, from 0; mean ± sample standard deviation",
        **configuration(report),
    }


def _result(report: Report) -> str:
    explained = (
        "In percentage points, with equal weight for all datasets. Mixed: among the items of all other "
        "modalities of all datasets together. Not in points: drift (relative; at the "
        "end, compared with the version that learned a dataset) and seconds (CPU time of learning)."
    )
    tables = _table(report, FINAL), _table(report, LEARNING)
    return "\n\n".join([explained, *tables, *_remarks(report)])


def _remarks(report: Report) -> list[str]:
    """Return lines below the tables: the best epochs of joint training, and failed runs."""
    found = []
    for name, figures in report.methods.items():
        if figures and figures.epochs and name != ALONE:
            best = ", ".join(f"{metric} {epoch}" for metric, epoch in figures.epochs.items())
            found.append(f"{name}, each metric at its best number of epochs: {best}.")
    failed = (f"Failed: {one.method}, seed {one.seed}: {one.error}" for one in report.failures)
    return [*found, *failed]


def _table(report: Report, columns: Mapping[str, str]) -> str:
    return table(["method", *columns], [[name, *row] for name, row in rows(report, columns)])


def mean_retention(panels: Mapping[str, Memory], metric: str) -> Picture:
    """Draw, for each memory, the mean recall of the datasets so far in % of that when learned."""
    drawn = []
    for place, (name, memory) in enumerate(panels.items()):
        kept = kept_shares(memory)
        points = [(float(row.version), share) for row, share in zip(memory.rows, kept, strict=True)]
        note = f"{percent(kept[-1] if kept else None)} %"
        drawn.append(Line(name, points, note, place))
    last = "; ".join(f"{brief(line.name)} {line.note}" for line in drawn)
    title = f"What is kept of the datasets learned so far, {metric}"
    texts = (title, f"After the last version: {last}." if last else "Nothing to compare yet.")
    return lines(
        texts, drawn, ("version", f"mean {metric}, % of when learned"), times=100, reaches=(1.0,)
    )


def kept_shares(memory: Memory) -> list[float | None]:
    """Return, by version, the mean recall of the datasets so far divided by that when learned.

    None where no dataset was measured, or where nothing was retrieved when learned.
    """
    shares: list[float | None] = []
    for row in memory.rows:
        both = [
            (now, then.recall)
            for now, then in zip(row.recall, memory.when_learned, strict=True)
            if now is not None and then is not None and then.recall is not None
        ]
        learned = sum(then for _, then in both)
        shares.append(sum(now for now, _ in both) / learned if learned > 0 else None)
    return shares
