"""Versions on a terminal: recall, certificate, capacity and lineage."""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import Cell, Grid, as_text, fields
from cmcl.cli.job_views import made_of
from cmcl.client import EvaluationRow, Version, VersionSummary
from cmcl.contract.version import HeadCapacity, LearnedDataset, MeasuredDataset, Recall

_BAR = 20
# Points of recall that count as a change; less is noise of small held-out sets.
_NOTICEABLE = 0.5
# Of a head; below it, few more datasets fit.
_SCARCE = 0.2
# What recall at 1 counts as a hit; see contract.version.Recall.
_COUNTS = {
    "same label": "same label: a row with the query's label, or with an equal item.",
    "equal item": "equal item: a row whose item equals that of the query's partner, or whose partner equals the query.",
    "own row": "own row: the query's own partner alone.",
}
_RECALL = ("rows", "R@1", "R@10", "own row R@1", "own row R@10")
_CERTIFICATE = (
    "drift: root mean square change of the dataset's scores, relative to their size. "
    "loss now (quality in the API): spectral contrastive loss; -1 as when the dataset was learned, "
    "lower is better, 0 is no better than no scores. "
    "best loss: the lowest that any two heads of this width reach on the dataset alone."
)
_CAPACITY = (
    "free: share of the head's entries that may still change. "
    "inputs, outputs used: directions that hold 95 % of the energy learned so far."
)


def version_view(version: Version, outcomes: Mapping[int, str]) -> RenderableType:
    """Render a version with all its tables. `outcomes`: as of `outcomes_of`, for versions without a dataset."""
    names = {line.dataset: line.name for line in version.lineage}
    return Group(
        fields(_facts(version), f"{version.model}@{version.version}"),
        matrix(version.evaluation_matrix, names, outcomes),
        recall_of_version(version.version, version.report.evaluation, names),
        *not_measured(version.report.not_evaluated, names),
        *measured_only(version.evaluation_only),
        certificate(version, names),
        capacity(version.capacity),
        lineage(version.lineage),
    )


def needs_outcomes(version: Version) -> bool:
    """Whether a row of its matrix belongs to a version whose dataset is not in the lineage."""
    known = {line.dataset for line in version.lineage}
    return any(row.learned not in known for row in version.evaluation_matrix)


def outcomes_of(versions: Iterable[VersionSummary]) -> dict[int, str]:
    """Return what each version learned, oldest first: `speech-fr (unlearned in 4)`, `unlearned speech-fr`."""
    outcomes: dict[int, str] = {}
    learned_in: dict[str, int] = {}
    for each in versions:
        name = each.dataset_name
        outcomes[each.version] = f"unlearned {name}" if each.kind == "unlearn" else name
        if each.kind == "learn":
            learned_in[name] = each.version
        elif each.kind == "unlearn" and name in learned_in:
            outcomes[learned_in.pop(name)] += f" (unlearned in {each.version})"
    return outcomes


def matrix(
    rows: list[EvaluationRow], names: Mapping[str, str], outcomes: Mapping[int, str]
) -> RenderableType:
    """Recall at 1 in per cent. Each column follows one dataset; losses are red."""
    datasets = [dataset for dataset in names if any(dataset in row.recall for row in rows)]
    if not datasets:
        return Text("not measured: no held-out rows\n", style="dim")
    counts = {dataset: _counted(dataset, rows) for dataset in datasets}
    headings = ("version", "learned", *(f"{names[each]} ({counts[each]})" for each in datasets))
    lines = []
    learned: dict[str, float] = {}
    for row in rows:
        for dataset, recall in row.recall.items():
            learned.setdefault(dataset, recall.at_1)
        cells = [_recall_cell(row, dataset, learned) for dataset in datasets]
        learned_here = names.get(row.learned or "") or outcomes.get(row.version, "-")
        lines.append([Text(str(row.version)), Text(learned_here), *cells])
    legend = " ".join(_COUNTS[each] for each in dict.fromkeys(counts.values()))
    # Of more than a hundred versions, not all rows are there.
    since = "learned" if rows[0].version == 1 else f"version {rows[0].version} or learned"
    title = f"recall at 1 in % (points since {since})"
    return Group(Grid(headings, lines, title), Text(legend, style="dim"))


def recall_of_version(
    number: int, measured: Mapping[str, Recall], names: Mapping[str, str]
) -> RenderableType:
    """Recall of one version at 1 and at 10, by item and by own row."""
    rows = [
        [Text(name), *recall_cells(measured[dataset])]
        for dataset, name in names.items()
        if dataset in measured
    ]
    if not rows:
        return Text("")
    legend = (
        "R@1 counts what the table above names, R@10 equal items; own row counts the query's own partner alone, after "
        "rows with an equal item. Rows that score the same come before a hit."
    )
    title = f"recall of version {number} in %"
    return Group(Grid(("dataset", *_RECALL), rows, title), Text(legend, style="dim"))


def not_measured(why: Mapping[str, str], names: Mapping[str, str]) -> list[RenderableType]:
    """Return a line for each earlier dataset whose held-out rows are missing in the store."""
    return [
        Text(f"{names.get(dataset, dataset)} was not measured: {reason}\n", style="yellow")
        for dataset, reason in why.items()
    ]


def measured_only(found: Sequence[MeasuredDataset]) -> list[RenderableType]:
    """Return a table of the datasets that are measured and never learned."""
    if not found:
        return []
    headings = ("dataset", "pair", *_RECALL, "note")
    rows = [
        [
            Text(f"{each.name}\n{each.dataset}"),
            Text(str(each.pair)),
            *recall_cells(each.recall),
            Text(each.note or "", style="yellow"),
        ]
        for each in found
    ]
    return [Grid(headings, rows, "measured only, never learned: recall in %")]


def recall_cells(recall: Recall | None) -> list[Text]:
    """Rows, and recall at 1 and at 10 in per cent, by item and by own row."""
    if recall is None:
        return [as_text(None)] * len(_RECALL)
    shares = (recall.at_1, recall.at_10, recall.own_at_1, recall.own_at_10)
    return [
        as_text(recall.rows),
        *(as_text(None if share is None else f"{100 * share:.1f}") for share in shares),
    ]


def certificate(version: Version, names: Mapping[str, str]) -> RenderableType:
    """Drift and loss of earlier datasets, computed from moments."""
    drift, quality = version.certificate.drift, version.certificate.quality
    if not drift and not quality:
        return Text("first version: no earlier datasets\n", style="dim")
    rows = []
    for dataset in dict.fromkeys((*drift, *quality)):
        moved, good = drift.get(dataset), quality.get(dataset)
        values: tuple[Cell, ...] = (
            moved.since_learned if moved else None,
            moved.against_parent if moved else None,
            good.now if good else None,
            good.best if good else None,
        )
        rows.append([Text(names.get(dataset, dataset)), *map(as_text, values)])
    headings = (
        "earlier dataset",
        "drift since learned",
        "drift by this version",
        "loss now",
        "best loss",
    )
    return Group(Grid(headings, rows, "certificate"), Text(_CERTIFICATE, style="dim"))


def capacity(heads: Mapping[str, HeadCapacity]) -> RenderableType:
    """A bar per modality with the free share of its head."""
    if not heads:
        return Text("")
    rows = [
        [
            Text(modality),
            _bar(head.free_share),
            Text(f"{head.input_directions} of {head.input_width}"),
            Text(f"{head.output_directions} of {head.output_width}"),
        ]
        for modality, head in heads.items()
    ]
    headings = ("modality", "free", "inputs used", "outputs used")
    return Group(Grid(headings, rows, "capacity"), Text(_CAPACITY, style="dim"))


def lineage(lines: tuple[LearnedDataset, ...]) -> RenderableType:
    """The datasets of the lineage and their files."""
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
        **made_of(version),
        "job": f"{version.job}, attempt {version.attempt}" if version.job else None,
        "copied from": version.copied_from,
        "updates": f"{report.updates} on {report.ranks} ranks",
        "created": version.created_at,
        "stored": version.stored_at,
        "retired": version.retired_at,
    }


def _counted(dataset: str, rows: list[EvaluationRow]) -> str:
    """Return what recall at 1 counts as a hit, in the newest version that was measured."""
    return next(row.recall[dataset].counts for row in reversed(rows) if dataset in row.recall)


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
