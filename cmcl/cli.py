"""The command line, over the same REST API that everybody uses."""

import json
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cmcl.client import DEFAULT_EMBEDDINGS_URL, DEFAULT_SERVICE_URL, Client, CmclError
from cmcl.progress import watch_with_bar
from cmcl.stack import LocalStack, Ports, StackError
from workers.contract.dataset import ShardRef
from workers.contract.modality import ModalityPair
from workers.contract.model import ModelSpec

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
model_app = typer.Typer(no_args_is_help=True, help="Models: create and list.")
dataset_app = typer.Typer(no_args_is_help=True, help="Datasets: add.")
job_app = typer.Typer(no_args_is_help=True, help="Jobs: watch and cancel.")
app.add_typer(model_app, name="model")
app.add_typer(dataset_app, name="dataset")
app.add_typer(job_app, name="job")

console = Console()
errors = Console(stderr=True)

ServiceUrl = Annotated[str, typer.Option("--url", envvar="CMCL_URL", help="the control plane")]
EmbeddingsUrl = Annotated[
    str, typer.Option("--embeddings-url", envvar="CMCL_EMBEDDINGS_URL", help="the query endpoint")
]


def main() -> None:
    """Entry point: errors that have words of their own are shown in one line."""
    try:
        app()
    except (CmclError, StackError, ValidationError) as error:
        errors.print(f"[red]error[/red]: {_in_words(error)}", highlight=False)
        raise SystemExit(1) from error


def _in_words(error: Exception) -> str:
    """One line; of pydantic's report, what a user can act on."""
    if not isinstance(error, ValidationError):
        return escape(str(error))
    parts = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]
    return escape("; ".join(f"{where}: {what}" if where else what for where, what in parts))


@app.command()
def up(
    folder: Annotated[Path, typer.Option(help="database, store and logs")] = Path(".cmcl/up"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="of the control plane")] = 8000,
    embeddings_port: Annotated[
        int, typer.Option(min=1, max=65535, help="of the query endpoint")
    ] = 8001,
    ranks: Annotated[int, typer.Option(min=1, help="processes that train a dataset")] = 2,
    allow: Annotated[
        list[str] | None, typer.Option(help="URI prefix that datasets may come from; repeatable")
    ] = None,
) -> None:
    """Run the whole system on this machine until Ctrl-C."""
    prefixes = tuple(allow) if allow else (Path.cwd().as_uri(),)
    stack = LocalStack(folder, Ports.free(port, embeddings_port), ranks, prefixes)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    console.print("starting (Ctrl-C stops) ...")
    with stack:
        console.print(f"control plane  {stack.service_url}/docs")
        console.print(f"embeddings     {stack.embeddings_url}/v1/embeddings")
        console.print(f"Ray dashboard  {stack.dashboard_url}")
        console.print(f"store          {stack.store_uri}")
        console.print(f"datasets from  {', '.join(prefixes)}")
        while not stopped.wait(1.0):
            for name in stack.ended():
                raise StackError(f"{name} ended; see {stack.log(name)}")
        console.print("stopping ...")


@app.command()
def demo(
    stream: Annotated[Path, typer.Option(help="folder with stream.json")] = Path("examples/stream"),
    folder: Annotated[Path, typer.Option(help="emptied first")] = Path(".cmcl/demo"),
    ranks: Annotated[int, typer.Option(min=1)] = 2,
    queries_per_second: Annotated[float, typer.Option(min=1)] = 200.0,
) -> None:
    """Learn a small real stream end to end, with and without protection, under queries."""
    # Here, because matplotlib is an extra that the other commands do without.
    from cmcl.demo.run import DemoError, DemoOptions, run_demo

    options = DemoOptions(stream, folder, ranks, queries_per_second)
    try:
        raise typer.Exit(run_demo(options, console))
    except (DemoError, FileNotFoundError) as error:
        errors.print(f"[red]error[/red]: {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error


@model_app.command("create")
def create_model(
    name: str,
    modality: Annotated[list[str], typer.Option(help="NAME=WIDTH of its features; repeatable")],
    width: Annotated[int, typer.Option(help="of the embeddings")] = 256,
    method: str = "nullspace",
    policy: Annotated[
        str, typer.Option(help="improve (earlier datasets go on teaching) or preserve")
    ] = "improve",
    max_drift: Annotated[
        float | None, typer.Option(help="largest relative drift of earlier scores")
    ] = None,
    stable_index: Annotated[
        bool, typer.Option("--stable-index", help="stored vectors keep their scores")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="passes over each dataset")] = None,
    seed: int = 0,
    url: ServiceUrl = DEFAULT_SERVICE_URL,
) -> None:
    """Create a model."""
    spec = ModelSpec.model_validate(
        {
            "width": width,
            "modalities": dict(_modality_width(text) for text in modality),
            "method": method,
            "protection": {
                "policy": policy,
                "max_drift": max_drift,
                "stable_index": stable_index,
            },
            "training": {} if epochs is None else {"epochs": epochs},
            "seed": seed,
        }
    )
    with Client(url) as client:
        console.print_json(data=client.create_model(name, spec))


@model_app.command("list")
def list_models(url: ServiceUrl = DEFAULT_SERVICE_URL) -> None:
    """All models with their head and live version."""
    with Client(url) as client:
        models = client.models()
    table = Table("model", "head", "live", "method", "width", "modalities")
    for model in models:
        widths = ", ".join(f"{name} {width}" for name, width in model["modalities"].items())
        table.add_row(
            *(model["name"], str(model["head_version"] or "-"), str(model["live_version"] or "-")),
            *(model["method"], str(model["width"]), widths),
        )
    console.print(table)


@dataset_app.command("add")
def add_dataset(
    model: str,
    name: str,
    shard: Annotated[list[str], typer.Option(help="path or URI of a Parquet file; repeatable")],
    pair: Annotated[str, typer.Option(help="FIRST,SECOND, e.g. image,text")],
    evaluation: Annotated[list[str] | None, typer.Option(help="held-out shard; repeatable")] = None,
    watch: Annotated[bool, typer.Option(help="follow the job to its end")] = False,
    url: ServiceUrl = DEFAULT_SERVICE_URL,
) -> None:
    """Post a dataset of paired features."""
    first, _, second = pair.partition(",")
    with Client(url) as client:
        accepted = client.add_dataset(
            model,
            name,
            ModalityPair(first=first.strip(), second=second.strip()),
            [ShardRef(uri=_uri(text)) for text in shard],
            [ShardRef(uri=_uri(text)) for text in evaluation or []],
        )
        console.print(f"dataset {accepted['dataset']['id']}, job {accepted['job']['id']}")
        if watch:
            _watch(client, accepted["job"]["id"])


@job_app.command("watch")
def watch_job(job: str, url: ServiceUrl = DEFAULT_SERVICE_URL) -> None:
    """Follow a job to its end; exit code 1 unless it became a version."""
    with Client(url) as client:
        _watch(client, job)


@job_app.command("cancel")
def cancel_job(job: str, url: ServiceUrl = DEFAULT_SERVICE_URL) -> None:
    """Ask for a job to be cancelled."""
    with Client(url) as client:
        console.print(f"{job}: {client.cancel(job)['state']}, cancellation asked for")


@app.command()
def versions(model: str, url: ServiceUrl = DEFAULT_SERVICE_URL) -> None:
    """The versions of a model: what each learned and what became of what came before.

    Quality is -1 when a dataset was learned; lower is better, 0 is nothing left.
    """
    with Client(url) as client:
        numbers = [entry["version"] for entry in client.versions(model)]
        manifests = [client.version(model, number) for number in sorted(numbers)]
    table = Table(
        *("version", "dataset", "pair", "R@1", "R@10", "largest drift", "worst quality", "created")
    )
    for manifest in manifests:
        learned, report = manifest.learned[-1], manifest.report
        recall = report.evaluation.get(learned.dataset)
        drift = max((value.since_learned for value in report.drift.values()), default=0.0)
        quality = max((value.now for value in report.quality.values()), default=-1.0)
        table.add_row(
            *(str(manifest.version), learned.name, str(learned.pair)),
            *(f"{100 * recall.at_1:.1f}" if recall else "-",),
            *(f"{100 * recall.at_10:.1f}" if recall else "-", f"{drift:.3f}", f"{quality:.3f}"),
            f"{manifest.created_at:%Y-%m-%d %H:%M:%S}",
        )
    console.print(table)


@app.command()
def embed(
    model: Annotated[str, typer.Argument(help="NAME for the live version, or NAME@VERSION")],
    modality: str,
    features: Annotated[Path, typer.Argument(help="JSON file with one feature or a list of them")],
    embeddings_url: EmbeddingsUrl = DEFAULT_EMBEDDINGS_URL,
) -> None:
    """Embed features; prints one JSON document."""
    rows = _features(features)
    with Client(embeddings_url=embeddings_url) as client:
        answer = client.embed(model, modality, rows)
    print(json.dumps({"version": answer.version, "embeddings": answer.vectors}))


@app.command()
def rollback(
    model: str,
    version: int,
    reason: str = "",
    url: ServiceUrl = DEFAULT_SERVICE_URL,
) -> None:
    """Let an earlier version (or a later one) answer queries again."""
    with Client(url) as client:
        live = client.promote(model, version, reason)
    console.print(f"{model}: version {live['version']} answers (generation {live['generation']})")


def _watch(client: Client, job: str) -> None:
    ended = watch_with_bar(client, job, job, console)
    if ended["state"] != "published":
        raise CmclError(f"job {job} ended as {ended['state']}: {ended['message']}")
    console.print(f"published as version {ended['version']}")


def _modality_width(text: str) -> tuple[str, int]:
    name, _, width = text.partition("=")
    if not width.isdecimal():
        raise CmclError(f"--modality {text!r}: write NAME=WIDTH, for example image=1280")
    return name, int(width)


def _features(path: Path) -> list[list[float]]:
    """One feature, or a list of features, as a list; what is in them is for the endpoint to judge."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CmclError(f"{path} cannot be read as JSON: {error}") from error
    if isinstance(rows, list) and not any(isinstance(row, list) for row in rows):
        rows = [rows]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise CmclError(f"{path}: write one feature (a list of numbers) or a list of features")
    return rows


def _uri(text: str) -> str:
    return text if "://" in text else Path(text).resolve().as_uri()
