"""`cmcl dataset`, `upload` and `preflight`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import Columns, Grid, as_text, fields, print_json, say, show, show_all, stdout
from cmcl.cli.errors import CommandError
from cmcl.cli.options import (
    DEFAULT_URL,
    AsJson,
    DatasetId,
    OfAnyModel,
    OfModel,
    PairText,
    Sources,
    Upload,
    Url,
    name_of,
    parse_pair,
)
from cmcl.cli.progress import follow, upload_bars
from cmcl.client import AcceptedDataset, Client, Dataset, DatasetSummary, Preflight
from cmcl.contract.preflight import Outlook

_LEGEND = (
    "free: share of the head's entries that may change, now and after this dataset. "
    "learnable share: share of the dataset's energy on these entries. "
    "familiarity: share of the features in the directions of earlier ones, beyond chance: 1 is all, "
    "0 is chance, as with features of another encoder."
)
app = typer.Typer(
    no_args_is_help=True,
    help="Datasets of paired features. Training turns each one into a version.",
)

Evaluation = Annotated[
    list[str] | None, typer.Option(help="held-out folder, file or address; repeatable")
]
Share = Annotated[
    float | None, typer.Option(min=0, max=0.5, help="share of rows to hold out, e.g. 0.1")
]
Watch = Annotated[
    bool,
    typer.Option(
        "--watch", help="follow the job to its end; exit code 3 if it ends without a version"
    ),
]


def _state(dataset: DatasetSummary) -> str:
    if dataset.quarantine_reason:
        return f"quarantined: {dataset.quarantine_reason}"
    return "sealed" if dataset.sealed_at else "open"


_COLUMNS: Columns[DatasetSummary] = {
    "dataset": lambda dataset: dataset.id,
    "name": lambda dataset: dataset.name,
    "model": lambda dataset: dataset.model,
    "pair": lambda dataset: str(dataset.pair),
    "rows": lambda dataset: dataset.rows,
    "state": _state,
    "created": lambda dataset: dataset.created_at,
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
    upload: Upload = "auto",
    watch: Watch = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Post a dataset and start its job. A folder stands for all its shards."""
    title, modalities = name or name_of(shards[0]), parse_pair(pair)
    with Client(url) as client:
        with upload_bars() as on_upload:
            accepted = client.add_dataset(
                *(model, title, modalities, shards, evaluation or ()),
                evaluation_share=evaluation_share,
                upload=upload,
                on_upload=on_upload,
            )
        job = accepted.job.id
        say(_accepted(accepted, title), accepted, as_json)
        if watch:
            follow(client, job, as_json)


@app.command("open")
def open_dataset(  # noqa: PLR0913 - the options of a dataset
    pair: PairText,
    model: OfModel,
    name: Annotated[str, typer.Argument(metavar="NAME", help="name of the dataset")],
    shards: Annotated[
        list[str] | None, typer.Argument(metavar="SHARDS", help="folders, files, or addresses")
    ] = None,
    *,
    evaluation_share: Share = None,
    upload: Upload = "auto",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Post a dataset that stays open for more shards. `seal` starts its job."""
    with Client(url) as client, upload_bars() as on_upload:
        opened = client.open_dataset(
            *(model, name, parse_pair(pair), shards or ()),
            evaluation_share=evaluation_share,
            upload=upload,
            on_upload=on_upload,
        )
    say(f"dataset {opened.id} is open", opened, as_json)


@app.command("append")
def append_shards(
    dataset: DatasetId,
    shards: Annotated[
        list[str] | None, typer.Argument(metavar="SHARDS", help="folders, files, or addresses")
    ] = None,
    evaluation: Evaluation = None,
    upload: Upload = "auto",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Add shards to an open dataset."""
    with Client(url) as client, upload_bars() as on_upload:
        grown = client.append_shards(
            *(dataset, shards or (), evaluation or ()), upload=upload, on_upload=on_upload
        )
    say(f"dataset {dataset} has {len(grown.shards)} shards", grown, as_json)


@app.command("seal")
def seal_dataset(
    dataset: DatasetId, watch: Watch = False, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Seal an open dataset and start its job."""
    with Client(url) as client:
        sealed = client.seal_dataset(dataset)
        say(f"dataset {dataset}, job {sealed.job.id}", sealed, as_json)
        if watch:
            follow(client, sealed.job.id, as_json)


@app.command("list")
def list_datasets(
    model: OfAnyModel = None, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """List datasets, oldest first."""
    with Client(url) as client:
        of_model = f" of model {model}" if model else ""
        hint = "no datasets{} yet; post one: cmcl dataset add SHARDS --pair FIRST,SECOND"
        show_all(client.datasets(model), as_json, _COLUMNS, hint.format(of_model))


@app.command("show")
def show_dataset(dataset: DatasetId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show a dataset with its shards."""
    with Client(url) as client:
        show(client.dataset(dataset), as_json, _view)


@app.command("delete")
def delete_dataset(dataset: DatasetId, url: Url = DEFAULT_URL) -> None:
    """Delete a dataset that is open, or whose job ended without a version."""
    with Client(url) as client:
        client.delete_dataset(dataset)


def upload_files(
    files: Annotated[list[Path], typer.Argument(metavar="FILES", help="files to upload")],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Upload files and print their addresses for use in a dataset. Interrupted uploads resume."""
    with Client(url) as client, upload_bars() as on_upload:
        for file in files:
            sent = client.upload(file, on_upload)
            if as_json:
                print_json(sent)
            else:
                stdout().print(f"{sent.uri}  {file}", soft_wrap=True, highlight=False)


def _accepted(accepted: AcceptedDataset, name: str) -> str:
    """Format the result. Posting the same shards again returns the existing dataset."""
    known, job = accepted.dataset, accepted.job.id
    if known.name == name:
        return f"dataset {known.id}, job {job}"
    return f"existing dataset {known.id} ({known.name}), job {job}; the name {name} is not used"


def _view(dataset: Dataset) -> RenderableType:
    return fields(
        {
            "dataset": dataset.id,
            "name": dataset.name,
            "model": dataset.model,
            "pair": str(dataset.pair),
            "rows": dataset.rows,
            "job": dataset.job,
            "state": _state(dataset),
            "shards": "\n".join(shard.uri for shard in dataset.shards),
            "held out": "\n".join(shard.uri for shard in dataset.evaluation_shards),
            "held-out share": dataset.evaluation_share,
            "created": dataset.created_at,
            "sealed": dataset.sealed_at,
        }
    )


def preflight(
    shards: Sources,
    pair: PairText,
    model: OfModel,
    upload: Upload = "auto",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Check a dataset without posting it. Exit code 1 if it would be rejected. Nothing is trained."""
    with Client(url) as client:
        with upload_bars() as on_upload:
            started = client.start_preflight(
                model, parse_pair(pair), shards, upload=upload, on_upload=on_upload
            )
        answer = client.await_preflight(started.id)
    show(answer, as_json, _preflight_view)
    if answer.outlook is None:
        raise CommandError(
            f"pre-flight {answer.id} has no result: {answer.message or answer.state}"
        )
    if answer.outlook.refusals:
        raise CommandError(f"the dataset would be rejected: {'; '.join(answer.outlook.refusals)}")


def _preflight_view(preflight: Preflight) -> RenderableType:
    outlook = preflight.outlook
    if outlook is None:
        return Text(f"{preflight.id}: {preflight.state}")
    lines = [Text(f"• {sentence}") for sentence in outlook.advice]
    return Group(_heads(outlook), Text(_LEGEND, style="dim"), *lines)


def _heads(outlook: Outlook) -> Grid:
    rows = []
    for modality in outlook.pair:
        found, head = outlook.findings.get(modality), outlook.heads.get(modality)
        moments = head.moments if head else None
        values = (
            found.rows if found else None,
            moments.free_share if moments else None,
            moments.free_share_after if moments else None,
            moments.learnable_share if moments else None,
            moments.familiarity if moments else None,
        )
        rows.append([Text(modality), *map(as_text, values)])
    headings = (
        "modality",
        "rows",
        "free now",
        "free after",
        "learnable share",
        "familiarity",
    )
    return Grid(headings, rows)
