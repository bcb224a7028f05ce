"""What a run leaves: tables for the terminal, a page with pictures, a document, and the last line.

Shares lie between 0 and 1 in documents, and are percent in tables.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.command_line import listed, table
from benchmarks.figures import Spread, spread
from benchmarks.paper.metrics import Matrix, summary
from benchmarks.paper.results import Cell, CellResult
from benchmarks.paper.synthetic import PREFIX
from benchmarks.report import machine, mean_retention
from cmcl.pictures import Memory, MemoryRow, forgetting_matrices

# Heading, and name in a summary.
COLUMNS: Mapping[str, str] = {
    "Acc": "accuracy",
    "BWT_A": "bwt_accuracy",
    "R@1": "recall_at_1",
    "R@5": "recall_at_5",
    "R@10": "recall_at_10",
    "BWT_R10": "bwt_recall_at_10",
}
# Names of the last line.
LAST_LINE = ("acc", "bwt_acc", "recall_at_1", "recall_at_5", "recall_at_10", "bwt_recall_at_10")
_PUBLISHED = Path(__file__).with_name("published.json")
# Whose seconds those of other methods are compared with.
_BASE = "vanilla"
_HEADINGS = ["method", *COLUMNS, "seconds", f"− {_BASE}"]
_NARROWEST, _WIDTH = 140, 1290.0
# Methods that see all steps at once, or none: no matrix to draw.
_PICTURED = {"accuracy": "Acc", "recall_at_10": "R@10"}


@dataclass(frozen=True)
class MethodFigures:
    """Figures of a method with one encoder over the seeds; `matrices` have one entry per seed."""

    metrics: Mapping[str, Spread | None]
    seconds: Spread
    matrices: Sequence[Matrix]


@dataclass
class Report:
    """Results of a run. `steps`: names, as learned. `notes`: what else a reader must know."""

    preset: str
    seeds: int
    steps: Sequence[str]
    deviations: Sequence[str]
    notes: Sequence[str] = ()
    encoders: dict[str, dict[str, MethodFigures]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, encoder: str, results: Mapping[Cell, CellResult]) -> None:
        """Add the cells of one encoder, in the order in which methods were given."""
        self.failures += [
            f"{cell}: {result.error}" for cell, result in results.items() if result.error
        ]
        by_method: dict[str, list[CellResult]] = {}
        for cell, result in results.items():
            if not result.error:
                by_method.setdefault(cell.method, []).append(result)
        self.encoders[encoder] = {
            method: figures_of(of_seeds) for method, of_seeds in by_method.items()
        }


def figures_of(of_seeds: Sequence[CellResult]) -> MethodFigures:
    """Mean and deviation over the seeds."""
    found = [summary(result.matrix) for result in of_seeds]
    metrics = {name: spread([one.get(name) for one in found]) for name in COLUMNS.values()}
    seconds = spread([result.seconds for result in of_seeds])
    assert seconds is not None
    return MethodFigures(metrics, seconds, [result.matrix for result in of_seeds])


@cache
def published() -> dict[str, Any]:
    """The published table, in percent."""
    found: dict[str, Any] = json.loads(_PUBLISHED.read_text())
    return found


def published_row(encoder: str, method: str) -> list[float] | None:
    """The published values of a method, in the order of COLUMNS; None if it is not in the paper.

    None beside the synthetic stand-in, which says nothing about the encoder.
    """
    if encoder.startswith(PREFIX):
        return None
    known = published()
    name = known["methods"].get(method)
    of_encoder = known["encoders"].get(encoder.rpartition("-")[2], {})
    row: list[float] | None = of_encoder.get(name)
    return row


def last_line(report: Report) -> dict[str, Any]:
    """The last line of stdout. With several encoders a figure is the mean over them; `encoders` of a method has each."""
    names = list(dict.fromkeys(name for found in report.encoders.values() for name in found))
    methods = {}
    for name in names:
        by_encoder = {
            encoder: _short(found[name])
            for encoder, found in report.encoders.items()
            if name in found
        }
        methods[name] = _mean_of(list(by_encoder.values()))
        if len(report.encoders) > 1:
            methods[name]["encoders"] = by_encoder
    return {
        "encoders": list(report.encoders),
        "steps": len(report.steps),
        "methods": methods,
        "deviations": list(report.deviations),
    }


def _short(figures: MethodFigures) -> dict[str, Any]:
    values = (figures.metrics[name] for name in COLUMNS.values())
    short = {key: value and value.mean for key, value in zip(LAST_LINE, values, strict=True)}
    return {**short, "seconds": figures.seconds.mean}


def _mean_of(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in several[0]:
        values = [one[key] for one in several if one[key] is not None]
        found[key] = fmean(values) if values else None
    return found


def document(report: Report) -> dict[str, Any]:
    """All figures as JSON."""
    return {
        **last_line(report),
        "preset": report.preset,
        "seeds": report.seeds,
        "step_names": list(report.steps),
        "notes": list(report.notes),
        "failures": report.failures,
        "machine": machine(),
        "figures": {
            encoder: {
                name: {
                    **{key: value and asdict(value) for key, value in one.metrics.items()},
                    "seconds": asdict(one.seconds),
                }
                for name, one in found.items()
            }
            for encoder, found in report.encoders.items()
        },
    }


def print_tables(report: Report, console: Console) -> None:
    """One table per encoder; below a method the published values, where it is in the paper."""
    console.width = max(console.width, _NARROWEST)
    for encoder, found in report.encoders.items():
        shown = Table(title=f"{encoder}, preset {report.preset}, seeds: {report.seeds}")
        for heading in _HEADINGS:
            shown.add_column(heading, justify="left" if heading == "method" else "right")
        for name, figures in found.items():
            shown.add_row(name, *_cells(figures, found.get(_BASE)))
            row = published_row(encoder, name)
            if row:
                shown.add_row("  published", *(f"{value:.2f}" for value in row), style="dim")
        console.print(shown)


def _cells(figures: MethodFigures, base: MethodFigures | None) -> list[str]:
    seconds = figures.seconds.mean
    beyond = f"{seconds - base.seconds.mean:+.1f}" if base else ""
    return [*map(_percent, figures.metrics.values()), f"{seconds:.1f}", beyond]


def _percent(value: Spread | None) -> str:
    return "" if value is None else f"{100 * value.mean:.2f} ± {100 * value.std:.2f}"


def leave(report: Report, folder: Path) -> None:
    """Write the document, the page and its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "paper.json").write_text(json.dumps(document(report), allow_nan=False) + "\n")
    pictures = [
        path
        for encoder, found in report.encoders.items()
        for path in _draw(encoder, found, report, folder)
    ]
    (folder / "paper.md").write_text(page(report, pictures))


def page(report: Report, pictures: Sequence[Path]) -> str:
    """The page of results."""
    parts = [
        "# The paper's experiments",
        (
            "Protocol as reconstructed: do not call this the paper's table. Figures are percent, mean ± sample "
            "deviation over the seeds; `published` is the paper's table (arXiv 2503.14963)."
        ),
        listed({"preset": f"`{report.preset}`", "seeds": report.seeds, "steps": len(report.steps)}),
        *report.notes,
    ]
    for encoder, found in report.encoders.items():
        rows: list[list[str]] = []
        for name, figures in found.items():
            rows.append([name, *_cells(figures, found.get(_BASE))])
            row = published_row(encoder, name)
            if row:
                rows.append(["*published*", *(f"*{value:.2f}*" for value in row), "", ""])
        parts += [f"## {encoder}", table(_HEADINGS, rows)]
        parts += [
            f"![{path.stem}]({path.name})"
            for path in pictures
            if path.name.startswith(f"paper-{encoder}-")
        ]
    parts += ["## Deviations from the published protocol", _bullets(report.deviations)]
    if report.failures:
        parts += ["## Failed runs", _bullets(report.failures)]
    parts += ["## Machine", listed(machine())]
    return "\n\n".join(parts) + "\n"


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {each}" for each in sentences)


def _draw(
    encoder: str, found: Mapping[str, MethodFigures], report: Report, folder: Path
) -> list[Path]:
    """Heat maps and retention curves of methods that learn step by step."""
    drawn = []
    for metric, title in _PICTURED.items():
        panels = {
            name: _memory(figures.matrices, metric, title, report.steps)
            for name, figures in found.items()
            if len(figures.matrices[0]) == len(report.steps) > 1
        }
        if panels:
            kind = metric.replace("_", "-")
            pictures = {
                "forgetting": forgetting_matrices(panels, width=_WIDTH),
                "retention": mean_retention(panels, title).svg(standalone=True),
            }
            for what, picture in pictures.items():
                path = folder / f"paper-{encoder}-{what}-{kind}.svg"
                path.write_text(picture + "\n", encoding="utf-8")
                drawn.append(path)
    return drawn


def _memory(matrices: Sequence[Matrix], metric: str, title: str, steps: Sequence[str]) -> Memory:
    """Mean over the seeds; None where a step is not learned yet, or lacks the test."""
    tested = [
        place for place in range(len(steps)) if getattr(matrices[0][0][place], metric) is not None
    ]
    names = [steps[place] for place in tested]
    rows = []
    for version in tested:
        values = [
            fmean(getattr(matrix[version][place], metric) for matrix in matrices)
            if place <= version
            else None
            for place in tested
        ]
        rows.append(MemoryRow(version + 1, steps[version], values))
    return Memory(names, rows, title)
