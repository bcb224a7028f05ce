"""`cmcl dataset` and `cmcl upload`: what models learn from, on its way to the service."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from cmcl.client import Client
from cmcl.terminal.console import Columns, fields, print_json, say, show, show_all, stdout
from cmcl.terminal.following import follow, upload_bars
from cmcl.terminal.options import (
    DEFAULT_URL,
    AsJson,
    OfAnyModel,
    OfModel,
    PairText,
    Sources,
    Upload,
    Url,
    name_of,
    parse_pair,
)
from cmcl.types import Dataset, DatasetSummary

app = typer.Typer(no_args_is_help=True, help="Datasets.")

Evaluation = Annotated[
    list[str] | None, typer.Option(help="held-out folder, file or address; repeatable")
]
Share = Annotated[
    float | None, typer.Option(min=0, max=0.5, help="of the rows that is held out, e.g. 0.1")
]
Watch = Annotated[bool, typer.Option("--watch", help="follow the job to its end")]


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
def add_dataset(  # noqa: PLR0913 - what a dataset has
    shards: Sources,
    pair: PairText,
    model: OfModel,
    *,
    name: Annotated[str | None, typer.Option(help="by default that of the folder")] = None,
    evaluation: Evaluation = None,
    evaluation_share: Share = None,
    upload: Upload = "auto",
    watch: Watch = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Post a dataset of paired features; a job learns it. A folder stands for all its shards."""
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
        say(f"dataset {accepted.dataset.id}, job {job}", accepted, as_json)
        if watch:
            follow(client, job, as_json)


@app.command("open")
def open_dataset(  # noqa: PLR0913 - what a dataset has
    pair: PairText,
    model: OfModel,
    name: Annotated[str, typer.Argument()],
    shards: Annotated[list[str] | None, typer.Argument(metavar="[SHARDS...]")] = None,
    *,
    evaluation_share: Share = None,
    upload: Upload = "auto",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Post a dataset that more shards are appended to; `seal` begins its job."""
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
    dataset: str,
    shards: Annotated[list[str] | None, typer.Argument(metavar="[SHARDS...]")] = None,
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
    dataset: str, watch: Watch = False, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """No more shards: its job begins."""
    with Client(url) as client:
        sealed = client.seal_dataset(dataset)
        say(f"dataset {dataset}, job {sealed.job.id}", sealed, as_json)
        if watch:
            follow(client, sealed.job.id, as_json)


@app.command("list")
def list_datasets(
    model: OfAnyModel = None, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Datasets in the order of their arrival."""
    with Client(url) as client:
        show_all(client.datasets(model), as_json, _COLUMNS)


@app.command("show")
def show_dataset(dataset: str, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """One dataset with its shards."""
    with Client(url) as client:
        show(client.dataset(dataset), as_json, _view)


@app.command("delete")
def delete_dataset(dataset: str, url: Url = DEFAULT_URL) -> None:
    """Remove a dataset that is open, or whose job ended without a version."""
    with Client(url) as client:
        client.delete_dataset(dataset)


def upload_files(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...")],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Send files; prints the address of each, for a dataset. One that broke off goes on."""
    with Client(url) as client, upload_bars() as on_upload:
        for file in files:
            sent = client.upload(file, on_upload)
            if as_json:
                print_json(sent)
            else:
                stdout().print(f"{sent.uri}  {file}", soft_wrap=True, highlight=False)


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
