"""`cmcl version`, `promote`, `rollback`, `history`: versions and the live version."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import (
    Cell,
    Columns,
    Grid,
    fields,
    say,
    show,
    show_all,
    stderr,
)
from cmcl.cli.errors import CommandError
from cmcl.cli.jobs import approval_cell, made_of
from cmcl.cli.models import free_shares
from cmcl.cli.options import (
    DEFAULT_QUERY_URL,
    DEFAULT_URL,
    AsJson,
    EmbeddingsUrl,
    ListOrder,
    ModelName,
    ModelOfVersion,
    MostItems,
    PictureFile,
    Reason,
    Url,
    VersionNumber,
    Yes,
    exact_version,
    model_version,
    save_pictures,
)
from cmcl.client import Client, EvaluationRow, Promotion, Version, VersionSummary
from cmcl.contract.version import HeadCapacity, LearnedDataset, MeasuredDataset, Recall

app = typer.Typer(
    no_args_is_help=True,
    help="Versions: list, show, export, retire. Each trained dataset makes one.",
)

_MOMENTS = (
    "warning: the folder has the means and second moments of every dataset. They reveal what rows have in common, and "
    "of a small dataset whether a given row is one of it (docs/security.md). Share it only with people who "
    "may have this information."
)
_NO_VERSION = "model {0!r} has no version yet; post a dataset to make one: cmcl dataset add"
_COLUMNS: Columns[VersionSummary] = {
    "version": lambda version: version.version,
    "dataset": lambda version: version.dataset_name,
    "kind": lambda version: version.kind,
    "pair": lambda version: str(version.pair),
    "drift": lambda version: version.max_drift,
    "recall": lambda version: version.mean_recall,
    "free": lambda version: free_shares(version.free_share),
    "job": lambda version: version.job,
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
def list_versions(
    model: ModelName,
    order: ListOrder = "asc",
    limit: MostItems = None,
    picture: PictureFile = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List versions with drift, recall and free shares, oldest first. JSON has them for each dataset."""
    with Client(url) as client:
        by_dataset = as_json or picture is not None
        found = list(islice(client.versions(model, order, by_dataset=by_dataset), limit))
        show_all(found, as_json, _COLUMNS, _NO_VERSION.format(model))
        if picture is not None:
            from cmcl.pictures import history_pictures

            bound = client.summary(model).drift_bound
            save_pictures(picture, f"versions of {model}", history_pictures(found, bound))


@app.command("show")
def show_version(
    model: ModelOfVersion,
    version: VersionNumber = None,
    picture: PictureFile = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show a version, by default the newest: evaluation, certificate, capacity, lineage."""
    name, number = model_version(model, version)
    with Client(url) as client:
        number = number or client.model(name).head_version
        if number is None:
            raise CommandError(_NO_VERSION.format(name))
        found = client.version(name, number)
        outcomes: dict[int, str] = {}
        if not as_json and needs_outcomes(found):
            earlier = takewhile(lambda each: each.version <= number, client.versions(name))
            outcomes = outcomes_of(earlier)
    show(found, as_json, partial(version_view, outcomes=outcomes))
    if picture is not None:
        from cmcl.pictures import version_pictures

        drawn = version_pictures(found)
        save_pictures(picture, f"{name}@{number}", drawn)


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


@app.command("export")
def export_version(  # noqa: PLR0913 - each part has its options
    model: ModelOfVersion,
    version: VersionNumber = None,
    *,
    form: Annotated[
        str,
        typer.Option("--format", help="sentence-transformers, safetensors, onnx or mlflow"),
    ],
    output: Annotated[Path, typer.Option(help="new folder to write")],
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=FOLDER",
            help="sentence-transformers model to put in front of the modality's head: the encoder whose "
            "features the version has learned; repeatable",
        ),
    ] = None,
    with_moments: Annotated[
        bool,
        typer.Option(
            "--with-moments",
            help="also export the means and second moments of its datasets, for merging at another site; with "
            "--format safetensors, and with the operator's key. They reveal more than heads do",
        ),
    ] = False,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
) -> None:
    """Export a version as a model for other programs, by default the live one."""
    name, number = model_version(model, version)
    encoders = dict(map(_encoder_folder, encoder or ()))
    reference = name if number is None else f"{name}@{number}"
    with Client(embeddings_url=embeddings_url) as client:
        client.export_version(reference, form, output, encoders, with_moments=with_moments)
    if with_moments:
        stderr().print(_MOMENTS, markup=False, soft_wrap=True)
    stderr().print(f"{output}: README.md says how it is used", markup=False, soft_wrap=True)


def _encoder_folder(text: str) -> tuple[str, Path]:
    """Parse MODALITY=FOLDER. Raises BadParameter."""
    modality, equals, folder = text.partition("=")
    if not (modality and equals and Path(folder).is_dir()):
        raise typer.BadParameter(
            f"{text!r}: write MODALITY=FOLDER, with a folder that exists", param_hint="--encoder"
        )
    return modality, Path(folder)


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


def history(
    model: ModelName,
    order: ListOrder = "asc",
    limit: MostItems = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List the changes of the live version, oldest first."""
    with Client(url) as client:
        hint = f"model {model} has not had a live version yet"
        show_all(client.promotions(model, order), as_json, _HISTORY, hint, limit)


_BAR = 20
# Points of recall that count as a change; less is noise of small held-out sets.
_NOTICEABLE = 0.5
# Free share of a head below which few more datasets fit.
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
    "same ten best: share of the ten best results that stay the same from the parent. by chance: between versions from the "
    "two halves of the dataset's rows. loss now (quality in the API): spectral contrastive loss; -1 as when the dataset was learned, "
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
        score_errors(version.report.score_errors, names),
        *(
            Text(f"{names.get(dataset, dataset)} was not measured: {reason}\n", style="yellow")
            for dataset, reason in version.report.not_evaluated.items()
        ),
        measured_only(version.evaluation_only),
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
        done = {"unlearn": "unlearned ", "erase": "erased a row of "}.get(each.kind, "")
        outcomes[each.version] = done + name
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
    lines = list[list[Cell]]()
    learned: dict[str, float] = {}
    for row in rows:
        for dataset, recall in row.recall.items():
            learned.setdefault(dataset, recall.at_1)
        cells = [_recall_cell(row, dataset, learned) for dataset in datasets]
        learned_here = names.get(row.learned or "") or outcomes.get(row.version, "-")
        lines.append([row.version, learned_here, *cells])
    legend = " ".join(_COUNTS[each] for each in dict.fromkeys(counts.values()))
    # With more than a hundred versions, not all rows are there.
    since = "learned" if rows[0].version == 1 else f"version {rows[0].version} or learned"
    title = f"recall at 1 in % (points since {since})"
    return Grid(headings, lines, title, legend)


def recall_of_version(
    number: int, measured: Mapping[str, Recall], names: Mapping[str, str]
) -> Grid:
    """Recall of one version at 1 and at 10, by item and by own row."""
    rows = [
        [name, *recall_cells(measured[dataset])]
        for dataset, name in names.items()
        if dataset in measured
    ]
    legend = (
        "R@1 counts what the table above names, R@10 equal items; own row counts the query's own partner alone, after "
        "rows with an equal item. Rows that score the same come before a hit."
    )
    title = f"recall of version {number} in %"
    return Grid(("dataset", *_RECALL), rows, title, legend)


def score_errors(errors: Mapping[str, Mapping[str, float]], names: Mapping[str, str]) -> Grid:
    """Return a table of how far scores move in collections, and engines, that store less of each vector."""
    forms = dict.fromkeys(form for each in errors.values() for form in each)
    rows = [
        [names.get(dataset, dataset), *(f"{each[form]:.2g}" for form in forms)]
        for dataset, each in errors.items()
        if each
    ]
    headings = ("dataset", *(f"first {form}" if form.isdecimal() else form for form in forms))
    legend = (
        "root mean square change of the cosine of any two held-out rows, by how vectors are stored: as a type, or by "
        "their first numbers."
    )
    return Grid(headings, rows, "scores of compressed vectors", legend)


def measured_only(found: Sequence[MeasuredDataset]) -> Grid:
    """Return a table of the datasets that are measured and never learned."""
    headings = ("dataset", "pair", *_RECALL, "note")
    rows = [
        [
            f"{each.name}\n{each.dataset}",
            str(each.pair),
            *recall_cells(each.recall),
            Text(each.note or "", style="yellow"),
        ]
        for each in found
    ]
    return Grid(headings, rows, "measured only, never learned: recall in %")


def recall_cells(recall: Recall | None) -> list[Cell]:
    """Rows, and recall at 1 and at 10 in per cent, by item and by own row."""
    if recall is None:
        return [None] * len(_RECALL)
    shares = (recall.at_1, recall.at_10, recall.own_at_1, recall.own_at_10)
    return [recall.rows, *(None if share is None else f"{100 * share:.1f}" for share in shares)]


def certificate(version: Version, names: Mapping[str, str]) -> RenderableType:
    """Drift and loss of earlier datasets, computed from moments."""
    drift, quality = version.certificate.drift, version.certificate.quality
    overlap = version.report.overlap
    if not drift and not quality:
        return Text("first version: no earlier datasets\n", style="dim")
    rows = []
    for dataset in dict.fromkeys((*drift, *quality)):
        moved, good = drift.get(dataset), quality.get(dataset)
        drifts = (moved.since_learned, moved.against_parent) if moved else (None, None)
        losses = (good.now, good.best) if good else (None, None)
        same = overlap.get(dataset)
        overlaps = (same.expected, same.measured, same.halves) if same else (None, None, None)
        rows.append([names.get(dataset, dataset), *drifts, *overlaps, *losses])
    drift_headings = ("drift since learned", "drift by this version")
    same_headings = ("same ten best, expected", "measured", "by chance")
    headings = ("earlier dataset", *drift_headings, *same_headings, "loss now", "best loss")
    earlier = sum(line.version != version.version for line in version.lineage)
    title = "certificate"
    if len(rows) < earlier:
        title = f"certificate of {len(rows)} of {earlier} earlier datasets, which take turns without a bound"
    return Grid(headings, rows, title, _CERTIFICATE)


def capacity(heads: Mapping[str, HeadCapacity]) -> Grid:
    """A bar per modality with the free share of its head."""
    rows: list[list[Cell]] = [
        [
            modality,
            _bar(head.free_share),
            f"{head.input_directions} of {head.input_width}",
            f"{head.output_directions} of {head.output_width}",
        ]
        for modality, head in heads.items()
    ]
    headings = ("modality", "free", "inputs used", "outputs used")
    return Grid(headings, rows, "capacity", _CAPACITY)


def lineage(lines: tuple[LearnedDataset, ...]) -> Grid:
    """The datasets of the lineage and their files."""
    rows: list[list[Cell]] = [
        [
            *(line.version, f"{line.name}\n{line.dataset}", str(line.pair), line.rows),
            "\n".join(digest[:16] for digest in line.shard_digests),
        ]
        for line in lines
    ]
    return Grid(("version", "dataset", "pair", "rows", "shards (SHA-256)"), rows, "lineage")


def _facts(version: Version) -> dict[str, Cell]:
    """What is known of the version."""
    report = version.manifest.report
    facts: dict[str, Cell] = {
        "parent": version.parent,
        **made_of(version),
        "erased rows": "\n".join(
            f"{each.row} of {line.name} in version {each.version}, by {each.requested_by}, {each.requested_at:%Y-%m-%d %H:%M}; "
            f"sums {each.before[:16]}, since then {each.after[:16]}; "
            + (f"signed:\n{each.signature}" if each.signature else "not signed")
            for line in version.lineage
            for each in line.erased
        ),
        "job": f"{version.job}, attempt {version.attempt}" if version.job else None,
        "approval": approval_cell(version.approval),
        "copied from": version.copied_from,
        "updates": f"{report.updates} on {report.ranks} ranks",
        "agreement of its pairs": f"{pairs.score:.3g}, by chance {pairs.least:.3g} or more"
        if (pairs := report.agreement)
        else None,
        "created": version.created_at,
        "stored": version.stored_at,
        "retired": version.retired_at,
    }
    return {name: fact for name, fact in facts.items() if fact not in (None, "")}


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
