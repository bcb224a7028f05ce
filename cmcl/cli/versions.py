"""`cmcl version`, `promote`, `rollback`, `history`: versions and the live version."""

from collections.abc import Mapping

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import Cell, Columns, Grid, as_text, fields, say, show, show_all
from cmcl.cli.errors import CommandError
from cmcl.cli.options import (
    DEFAULT_URL,
    AsJson,
    ModelName,
    ModelOfVersion,
    Reason,
    Url,
    VersionNumber,
    Yes,
    exact_version,
    model_version,
)
from cmcl.client import Client, EvaluationRow, Promotion, Version, VersionSummary
from cmcl.contract.version import HeadCapacity, LearnedDataset

_BAR = 20
# Points of recall that count as a change; less is noise of small held-out sets.
_NOTICEABLE = 0.5
# Of a head; below it, few more datasets fit.
_SCARCE = 0.2
# Criterion for a correct result; see contract.version.Recall.
_COUNTS = {
    "same label": "same label: the nearest row has the query's label.",
    "same item": "same item: the nearest row is the query's own partner.",
}
_CERTIFICATE = (
    "drift: root mean square change of the dataset's scores, relative to their size. "
    "loss now (quality in the API): spectral contrastive loss; -1 as when the dataset was learned, "
    "lower is better, 0 is no better than no scores."
)
_CAPACITY = (
    "free: share of the head's entries that may still change. "
    "inputs, outputs used: directions that hold 95 % of the energy learned so far."
)
app = typer.Typer(
    no_args_is_help=True,
    help="Versions: list, show, retire. Each trained dataset makes one.",
)

_NO_VERSION = "model {0!r} has no version yet; post a dataset to make one: cmcl dataset add"
_COLUMNS: Columns[VersionSummary] = {
    "version": lambda version: version.version,
    "dataset": lambda version: version.dataset_name,
    "job": lambda version: version.job,
    "attempt": lambda version: version.attempt,
    "from": lambda version: version.copied_from,
    "created": lambda version: version.created_at,
    "retired": lambda version: version.retired_at,
}
_HISTORY: Columns[Promotion] = {
    "generation": lambda change: change.generation,
    "version": lambda change: change.version,
    "before": lambda change: change.previous,
    "kind": lambda change: change.kind,
    "by": lambda change: change.actor,
    "when": lambda change: change.created_at,
    "reason": lambda change: change.reason,
}


@app.command("list")
def list_versions(model: ModelName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the versions of a model, oldest first."""
    with Client(url) as client:
        show_all(client.versions(model), as_json, _COLUMNS, _NO_VERSION.format(model))


@app.command("show")
def show_version(
    model: ModelOfVersion,
    version: VersionNumber = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show a version, by default the newest: evaluation, certificate, capacity, lineage."""
    name, number = model_version(model, version)
    with Client(url) as client:
        number = number or client.model(name).head_version
        if number is None:
            raise CommandError(_NO_VERSION.format(name))
        show(client.version(name, number), as_json, version_view)


@app.command("retire")
def retire_version(
    model: ModelOfVersion, version: VersionNumber = None, url: Url = DEFAULT_URL, yes: Yes = False
) -> None:
    """Retire a version, so that it can no longer be served."""
    name, number = exact_version(model, version)
    if not yes:
        typer.confirm(f"Retire version {number} of {name}?", abort=True, err=True)
    with Client(url) as client:
        client.retire_version(name, number)


def promote(
    model: ModelOfVersion,
    version: VersionNumber = None,
    reason: Reason = "",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Make a version live, so that it serves queries."""
    name, number = exact_version(model, version)
    with Client(url) as client:
        live = client.promote(name, number, reason)
    say(f"{name}: version {live.version} is live (generation {live.generation})", live, as_json)


def rollback(
    model: ModelName, reason: Reason = "", url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Make the previously live version live again."""
    with Client(url) as client:
        live = client.roll_back(model, reason)
    say(f"{model}: version {live.version} is live (generation {live.generation})", live, as_json)


def history(model: ModelName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the changes of the live version."""
    with Client(url) as client:
        show_all(
            client.promotions(model),
            as_json,
            _HISTORY,
            f"model {model} has not had a live version yet",
        )


def version_view(version: Version) -> RenderableType:
    """Render a version with all its tables."""
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
        lines.append([Text(str(row.version)), Text(names.get(row.learned, row.learned)), *cells])
    legend = " ".join(_COUNTS[each] for each in dict.fromkeys(counts.values()))
    title = "recall at 1 in % (points since learned)"
    return Group(Grid(headings, lines, title), Text(legend, style="dim"))


def not_measured(why: Mapping[str, str], names: Mapping[str, str]) -> list[RenderableType]:
    """Return a line for each earlier dataset whose held-out rows are missing in the store."""
    return [
        Text(f"{names.get(dataset, dataset)} was not measured: {reason}\n", style="yellow")
        for dataset, reason in why.items()
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
        )
        rows.append([Text(names.get(dataset, dataset)), *map(as_text, values)])
    headings = ("earlier dataset", "drift since learned", "drift by this version", "loss now")
    return Group(Grid(headings, rows, "certificate"), Text(_CERTIFICATE, style="dim"))


def capacity(heads: Mapping[str, HeadCapacity]) -> RenderableType:
    """A bar per modality with the free share of its head."""
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
        "dataset": f"{version.dataset_name} ({version.dataset})",
        "job": f"{version.job}, attempt {version.attempt}" if version.job else None,
        "copied from": version.copied_from,
        "updates": f"{report.updates} on {report.ranks} ranks",
        "created": version.created_at,
        "stored": version.stored_at,
        "retired": version.retired_at,
    }


def _counted(dataset: str, rows: list[EvaluationRow]) -> str:
    """Return the criterion. A dataset with labels has an accuracy, and recall at 1 counts labels."""
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
