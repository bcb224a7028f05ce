"""A version as a page: what became of each dataset, what its heads can still learn, where it is from."""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.contract.version import HeadCapacity, LearnedDataset
from cmcl.terminal.console import Cell, Grid, as_text, fields
from cmcl.types import EvaluationRow, Version

_BAR = 20
# Points of recall that count as a change: less is the noise of small held-out sets.
_NOTICEABLE = 0.5
# Of a head; below it, few more datasets fit.
_SCARCE = 0.2
# What a retrieved row must have in common with the query to count; see contract.version.Recall.
_COUNTS = {
    "same label": "same label: the nearest row has the query's label.",
    "same item": "same item: the nearest row is the query's own partner.",
}
_CERTIFICATE = (
    "drift: root mean square change of the dataset's scores, relative to their size. "
    "loss now (quality in the API): spectral contrastive loss; -1 is as when the dataset was learned, "
    "lower is better, 0 is as good as no scores."
)
_CAPACITY = (
    "free to learn: share of the head's entries that may still change. "
    "inputs, outputs used: directions that hold 95 % of the energy learned so far."
)


def version_view(version: Version) -> RenderableType:
    """All of it."""
    names = {line.dataset: line.name for line in version.lineage}
    return Group(
        fields(_facts(version), f"{version.model}@{version.version}"),
        matrix(version.evaluation_matrix, names),
        *not_measured(version.report.not_evaluated, names),
        certificate(version, names),
        capacity(version.capacity),
        lineage(version.lineage),
    )


def matrix(rows: list[EvaluationRow], names: Mapping[str, str]) -> RenderableType:
    """Recall at 1 in per cent; down a column, what became of a dataset: red where it lost."""
    datasets = [dataset for dataset in names if any(dataset in row.recall for row in rows)]
    if not datasets:
        return Text("no held-out rows, so nothing was measured\n", style="dim")
    counts = {dataset: _counted(dataset, rows) for dataset in datasets}
    headings = ("version", "learned", *(f"{names[each]} ({counts[each]})" for each in datasets))
    lines = []
    learned: dict[str, float] = {}
    for row in rows:
        for dataset, recall in row.recall.items():
            learned.setdefault(dataset, recall.at_1)
        cells = [_recall_cell(row, dataset, learned) for dataset in datasets]
        lines.append([Text(str(row.version)), Text(names.get(row.learned, row.learned)), *cells])
    legend = " ".join(_COUNTS[each] for each in dict.fromkeys(counts.values()))
    title = "recall at 1 in % (points since learned)"
    return Group(Grid(headings, lines, title), Text(legend, style="dim"))


def not_measured(why: Mapping[str, str], names: Mapping[str, str]) -> list[RenderableType]:
    """A line for each earlier dataset whose held-out rows the store has lost."""
    return [
        Text(f"{names.get(dataset, dataset)} was not measured: {words}\n", style="yellow")
        for dataset, words in why.items()
    ]


def certificate(version: Version, names: Mapping[str, str]) -> RenderableType:
    """How far the scores of earlier datasets moved, and how good they still are; from moments."""
    drift, quality = version.certificate.drift, version.certificate.quality
    if not drift and not quality:
        return Text("the first version: there is nothing that it could have moved\n", style="dim")
    rows = []
    for dataset in dict.fromkeys((*drift, *quality)):
        moved, good = drift.get(dataset), quality.get(dataset)
        values: tuple[Cell, ...] = (
            moved.since_learned if moved else None,
            moved.against_parent if moved else None,
            good.now if good else None,
        )
        rows.append([Text(names.get(dataset, dataset)), *map(as_text, values)])
    headings = ("earlier dataset", "drift since learned", "drift by this version", "loss now")
    return Group(Grid(headings, rows, "certificate"), Text(_CERTIFICATE, style="dim"))


def capacity(heads: Mapping[str, HeadCapacity]) -> RenderableType:
    """A bar per modality: how much of its head is free."""
    if not heads:
        return Text("")
    rows = [
        [
            Text(modality),
            _bar(head.free_share),
            Text(f"{head.input_rank} of {head.input_width}"),
            Text(f"{head.output_rank} of {head.output_width}"),
        ]
        for modality, head in heads.items()
    ]
    headings = ("modality", "free to learn", "inputs used", "outputs used")
    return Group(Grid(headings, rows, "capacity"), Text(_CAPACITY, style="dim"))


def lineage(lines: tuple[LearnedDataset, ...]) -> RenderableType:
    """What it has learned, and from which files."""
    rows = []
    for line in lines:
        digests = "\n".join(digest[:16] for digest in line.shard_digests)
        name = Text(f"{line.name}\n{line.dataset}")
        values = (line.version, name, str(line.pair), line.rows, digests)
        rows.append([as_text(value) for value in values])
    return Grid(("version", "dataset", "pair", "rows", "shards (SHA-256)"), rows, "lineage")


def _facts(version: Version) -> dict[str, Cell]:
    report = version.manifest.report
    return {
        "parent": version.parent,
        "dataset": f"{version.dataset_name} ({version.dataset})",
        "job": f"{version.job}, attempt {version.attempt}" if version.job else None,
        "copied from": version.copied_from,
        "updates": f"{report.updates} on {report.ranks} ranks",
        "created": version.created_at,
        "stored": version.stored_at,
        "retired": version.retired_at,
    }


def _counted(dataset: str, rows: list[EvaluationRow]) -> str:
    """A dataset has an accuracy where its rows have labels, and then recall at 1 counts labels."""
    measured = (row.recall[dataset] for row in rows if dataset in row.recall)
    return "same item" if next(measured).accuracy is None else "same label"


def _recall_cell(row: EvaluationRow, dataset: str, learned: Mapping[str, float]) -> Text:
    recall = row.recall.get(dataset)
    if recall is None:
        return Text("")
    percent, change = 100 * recall.at_1, 100 * (recall.at_1 - learned[dataset])
    if row.learned == dataset:
        return Text(f"{percent:.1f}", style="bold")
    return Text(f"{percent:.1f} ({change:+.1f})", style=_colour(change))


def _colour(change: float) -> str:
    if change >= -_NOTICEABLE:
        return "green" if change >= _NOTICEABLE else ""
    return "yellow" if change > -5 * _NOTICEABLE else "red"


def _bar(share: float) -> Text:
    full = round(_BAR * share)
    colour = "green" if share > _SCARCE else "red"
    left = f" {100 * share:.0f} %"
    return Text.assemble(("█" * full, colour), ("░" * (_BAR - full), "dim"), left)
