"""`cmcl dataset`: post, list, show and delete datasets."""

from functools import partial
from math import inf
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import (
    Columns,
    Grid,
    fields,
    print_json,
    say,
    show,
    show_all,
    stderr,
)
from cmcl.cli.errors import CommandError
from cmcl.cli.options import (
    DEFAULT_URL,
    AsJson,
    DatasetId,
    ListOrder,
    MostItems,
    OfAnyModel,
    OfModel,
    PairText,
    Sources,
    Upload,
    Url,
    Watch,
    name_of,
    parse_pair,
)
from cmcl.cli.progress import follow, upload_bars
from cmcl.client import AcceptedDataset, Client, Dataset, DatasetSummary, InvalidArgument
from cmcl.client.files import raw_path
from cmcl.client.raw_folder import RawFolder, read_raw_folder, write_manifest
from cmcl.contract.api.jobs import Encoders, RejectedSummary
from cmcl.contract.dataset import RejectedRow, ShardRef
from cmcl.contract.modality import ModalityPair
from cmcl.contract.version import EvaluationResult

app = typer.Typer(
    no_args_is_help=True,
    help="Datasets of pairs, raw or as features. Training turns each one into a version.",
)

# Named files that are missing, of each folder.
_MOST_MISSING = 5

Evaluation = Annotated[
    list[str] | None, typer.Option(help="held-out folder, file or address; repeatable")
]
Share = Annotated[
    float | None, typer.Option(min=0, max=0.5, help="share of rows to hold out, e.g. 0.1")
]
MaxBadShare = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="largest share of rows that may be unusable and is left out; default 0.01 of raw rows, 0 of "
        "features",
    ),
]
EvaluateOnly = Annotated[
    bool,
    typer.Option(
        "--evaluate-only",
        help="learn nothing of it: measure recall on all its rows, with the live version and every later "
        "one; the pair need never have been trained",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="prepare it, print what a training would meet, and keep nothing; exit code 1 if it "
        "would be rejected",
    ),
]
ManifestFile = Annotated[
    Path | None,
    typer.Option(
        "--write-manifest",
        metavar="FILE",
        help="only write the manifest (JSONL) of a folder of raw files, and send nothing",
    ),
]


def state(dataset: DatasetSummary) -> str:
    if dataset.quarantine_reason:
        return f"quarantined: {dataset.quarantine_reason}"
    if dataset.dry_run:
        return "dry run"
    sealed = "sealed" if dataset.sealed_at else "open"
    return f"{sealed}, measured only" if dataset.evaluate_only else sealed


_COLUMNS: Columns[DatasetSummary] = {
    "dataset": lambda dataset: dataset.id,
    "name": lambda dataset: dataset.name,
    "model": lambda dataset: dataset.model,
    "pair": lambda dataset: str(dataset.pair),
    "rows": lambda dataset: dataset.rows,
    "state": state,
    "created": lambda dataset: dataset.created_at,
}
_REJECTED_COLUMNS: Columns[RejectedRow] = {
    "row": lambda row: row.place,
    "reason": lambda row: row.reason,
    "id": lambda row: row.id,
}


@app.command("add")
def add_dataset(  # noqa: PLR0913 - the options of a dataset
    shards: Sources,
    pair: PairText,
    model: OfModel,
    *,
    name: Annotated[
        str | None, typer.Option(help="name of the dataset; default: name of the folder or file")
    ] = None,
    evaluation: Evaluation = None,
    evaluation_share: Share = None,
    max_bad_share: MaxBadShare = None,
    evaluate_only: EvaluateOnly = False,
    dry_run: DryRun = False,
    manifest: ManifestFile = None,
    upload: Upload = "auto",
    watch: Watch = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Post a dataset and start its job.

    A folder stands for all its shards, or for its raw files: a metadata file, files with
    captions beside them, or a folder for each class (docs/datasets.md).
    """
    title, modalities = name or name_of(shards[0]), parse_pair(pair)
    if manifest is not None:
        _write_manifest(shards, modalities, manifest)
        return
    if dry_run and evaluate_only:
        raise typer.BadParameter(
            "a dataset that is not learned has nothing to report on; leave out one of the two",
            param_hint="--dry-run, --evaluate-only",
        )
    with Client(url) as client:
        train = [_shown(client, shard, model, modalities) for shard in shards]
        held_out = [_shown(client, shard, model, modalities) for shard in evaluation or ()]
        with upload_bars() as on_upload:
            post = partial(
                partial(client.dry_run, timeout=inf)
                if dry_run
                else partial(client.add_dataset, evaluate_only=evaluate_only),
                *(model, title, modalities, train, held_out),
                evaluation_share=evaluation_share,
                max_bad_share=max_bad_share,
                upload=upload,
                on_upload=on_upload,
            )
            posted: AcceptedDataset | Dataset = post()
        if isinstance(posted, Dataset):
            _show_report(client, posted, as_json)
            return
        say(_accepted(posted, title), posted, as_json)
        if watch:
            follow(client, posted.job.id, as_json)


@app.command("list")
def list_datasets(
    model: OfAnyModel = None,
    order: ListOrder = "asc",
    limit: MostItems = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List datasets, oldest first."""
    with Client(url) as client:
        of_model = f" of model {model}" if model else ""
        hint = "no datasets{} yet; post one: cmcl dataset add SHARDS --pair FIRST,SECOND"
        found = client.datasets(model, order)
        show_all(found, as_json, _COLUMNS, hint.format(of_model), limit)


@app.command("show")
def show_dataset(dataset: DatasetId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show a dataset with its shards, the first rows that were left out, and the report of a dry run."""
    with Client(url) as client:
        show(client.dataset(dataset), as_json, dataset_view)


@app.command("rejected")
def list_rejected_rows(dataset: DatasetId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the rows that were left out, with the reason of each."""
    with Client(url) as client:
        rows = client.rejected_rows(dataset)
        show_all(rows, as_json, _REJECTED_COLUMNS, f"no rows of {dataset} were left out")


@app.command("delete")
def delete_dataset(
    dataset: DatasetId,
    unlearn: Annotated[
        bool, typer.Option("--unlearn", help="publish a version that never saw the dataset")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="with --unlearn: the model that unlearns it; default the one it was posted to"
        ),
    ] = None,
    watch: Watch = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Delete a dataset that is open, measured only, or whose job ended without a version; or unlearn one that was learned."""
    if not unlearn and (model is not None or watch):
        raise InvalidArgument("--model and --watch need --unlearn")
    with Client(url) as client:
        if not unlearn:
            client.delete_dataset(dataset)
            return
        job = client.unlearn_dataset(dataset, model)
        say(f"job {job.id} unlearns dataset {dataset} from model {job.model}", job, as_json)
        if watch:
            follow(client, job.id, as_json)


@app.command("erase")
def erase_row(
    dataset: DatasetId,
    item: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="the row, as JSON: the features of both sides by modality, as they were learned",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="the model that erases it; default the one it was posted to"),
    ] = None,
    watch: Watch = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Erase a row from a dataset that was learned: publish a version whose dataset never had it."""
    try:
        features = TypeAdapter(dict[str, list[float]]).validate_json(item.read_bytes())
    except ValidationError as error:
        raise typer.BadParameter(
            f"{item} is not JSON of the form {{modality: [number, ...]}} for both modalities",
            param_hint="--item",
        ) from error
    with Client(url) as client:
        job = client.erase_row(dataset, features, model)
        said = f"job {job.id} erases a row of dataset {dataset} from model {job.model}"
        if job.state == "published":
            said = f"job {job.id} has erased this row before: {job.model}@{job.version}"
        say(said, job, as_json)
        if watch and job.state != "published":
            follow(client, job.id, as_json)


def _accepted(accepted: AcceptedDataset, name: str) -> str:
    """Format the result. Posting the same shards again returns the existing dataset."""
    known, job = accepted.dataset, accepted.job.id
    if known.name == name:
        return f"dataset {known.id}, job {job}"
    return f"existing dataset {known.id} ({known.name}), job {job}; the name {name} is not used"


def _shown(client: Client, source: str, model: str, pair: ModalityPair) -> str | RawFolder:
    """Read a folder of raw files, and print what was found. Returns other sources as they are."""
    found = client.raw_folder(source, model, pair)
    if found is None:
        return source
    missing = [f"missing: {path}" for path in found.missing[:_MOST_MISSING]]
    if (more := len(found.missing) - _MOST_MISSING) > 0:
        missing.append(f"missing: {more:,} more files that rows name")
    for line in (str(found), *(f"  {note}" for note in (*found.notes, *missing))):
        stderr().print(line, highlight=False, markup=False, soft_wrap=True)
    return found


def _write_manifest(sources: list[str], pair: ModalityPair, target: Path) -> None:
    paths = [path for source in sources if (path := raw_path(source)) is not None]
    found = [folder for path in paths if (folder := read_raw_folder(path, pair)) is not None]
    if len(found) != 1:
        raise typer.BadParameter(
            "give one folder of raw files whose layout is known (docs/datasets.md)",
            param_hint="--write-manifest",
        )
    try:
        write_manifest(found[0], target)
    except OSError as error:
        raise CommandError(f"{target} cannot be written: {error.strerror}") from error
    stderr().print(f"{found[0]}; written to {target}", highlight=False, soft_wrap=True)


def _show_report(client: Client, checked: Dataset, as_json: bool) -> None:
    """Print the report of a dry run. Raises CommandError if the dataset would be rejected."""
    if checked.report is None:
        if as_json:
            print_json(checked)
        why = checked.quarantine_reason or client.job(str(checked.job)).message or "see its job"
        raise CommandError(f"the dataset would be rejected: {why}")
    show(checked, as_json, report_view)
    if checked.report.refusals:
        raise CommandError(f"the dataset would be rejected: {'; '.join(checked.report.refusals)}")


_LEGEND = (
    "familiarity: share of the features in the directions of earlier ones, beyond chance: 1 is all, "
    "0 is chance, as with features of another encoder."
)


def dataset_view(dataset: Dataset) -> RenderableType:
    """All fields, and the report of a dry run."""
    report = [Text(), report_view(dataset)] if dataset.report else []
    page = fields(
        {
            "dataset": dataset.id,
            "name": dataset.name,
            "model": dataset.model,
            "pair": str(dataset.pair),
            "rows": dataset.rows,
            "held-out rows": dataset.evaluation_rows,
            "recall": evaluation_cell(dataset.evaluation),
            "left out": rejected_cell(dataset.rejected),
            "warnings": "\n".join(dataset.warnings),
            "encoders": encoders_cell(dataset.encoders),
            "job": dataset.job,
            "state": state(dataset),
            "shards": "\n".join(map(_shard, dataset.shards)),
            "held out": "\n".join(map(_shard, dataset.evaluation_shards)),
            "held-out share": dataset.evaluation_share,
            "created": dataset.created_at,
            "sealed": dataset.sealed_at,
        }
    )
    return Group(page, *report)


def _shard(shard: ShardRef) -> str:
    return shard.uri if shard.name is None else f"{shard.name} ({shard.uri})"


def rejected_cell(rejected: RejectedSummary | None) -> str | None:
    """Number of the rows that were left out, and the first ones with their reasons."""
    if rejected is None:
        return None
    first = [f"{row.place}: {row.reason}" for row in rejected.first]
    more = rejected.rows - len(first)
    lines = [f"{rejected.rows} rows", *first, *([f"... {more} more"] if more else [])]
    return "\n".join(lines)


def evaluation_cell(found: EvaluationResult | None) -> str | None:
    """Recall of a dataset that is measured only, and the version that was measured."""
    if found is None:
        return None
    lines = [found.note] if found.note else []
    if (recall := found.recall) is not None:
        measured = (
            f"at 1: {100 * recall.at_1:.1f} % ({recall.counts}), at 10: {100 * recall.at_10:.1f} %"
        )
        if recall.own_at_1 is not None and recall.own_at_10 is not None:
            own = f"{100 * recall.own_at_1:.1f} %, at 10: {100 * recall.own_at_10:.1f} %"
            lines.insert(0, f"own row at 1: {own}")
        lines.insert(0, f"{measured} of {recall.rows} rows, in version {found.version}")
    return "\n".join(lines)


def encoders_cell(encoders: Encoders | None) -> str | None:
    """The encoder of each modality."""
    if encoders is None:
        return None
    return ", ".join(
        f"{modality} {found}"
        if isinstance(found, str)
        else f"{modality} {found.kind} {found.model or ''}".rstrip()
        for modality, found in encoders.items()
    )


def report_view(checked: Dataset) -> RenderableType:
    """The report of a dry run."""
    report = checked.report
    if report is None:
        return Text(checked.quarantine_reason or "no report")
    left_out = rejected_cell(checked.rejected)
    held_out = f", {report.evaluation_rows} held out" if report.evaluation_rows else ""
    rows = "usable rows" if report.refusals else "rows to train on"
    lines = [
        Text(f"{report.rows} {rows}{held_out}"),
        *([Text(f"left out: {left_out}")] if left_out else []),
        *(Text(f"• {sentence}") for sentence in report.advice),
    ]
    sides = []
    for modality in report.pair:
        found = report.findings.get(modality)
        values = (found.rows, found.familiarity) if found else (None, None)
        sides.append([modality, *values])
    grid = Grid(("modality", "rows", "familiarity"), sides, legend=_LEGEND)
    return Group(grid, *lines)
