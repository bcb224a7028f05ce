"""`cmcl version`, `promote`, `rollback`, `history`: versions, and which one answers."""

from typing import Annotated

import typer

from cmcl.client import Client
from cmcl.terminal.console import Columns, say, show, show_all
from cmcl.terminal.options import DEFAULT_URL, AsJson, ModelName, Reason, Url, Yes
from cmcl.terminal.version_view import version_view
from cmcl.types import Promotion, VersionSummary

app = typer.Typer(no_args_is_help=True, help="Versions.")

Number = Annotated[int, typer.Argument(metavar="VERSION", min=1)]

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
    """Versions of a model, the first one first."""
    with Client(url) as client:
        show_all(client.versions(model), as_json, _COLUMNS)


@app.command("show")
def show_version(
    model: ModelName, version: Number, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """One version: what became of each dataset, certificate, capacity, lineage."""
    with Client(url) as client:
        show(client.version(model, version), as_json, version_view)


@app.command("retire")
def retire_version(
    model: ModelName, version: Number, url: Url = DEFAULT_URL, yes: Yes = False
) -> None:
    """Let a version answer no more."""
    if not yes:
        typer.confirm(f"retire version {version} of {model}?", abort=True, err=True)
    with Client(url) as client:
        client.retire_version(model, version)


def promote(
    model: ModelName,
    version: Number,
    reason: Reason = "",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Let a version answer queries."""
    with Client(url) as client:
        live = client.promote(model, version, reason)
    say(f"{model}: version {live.version} answers (generation {live.generation})", live, as_json)


def rollback(
    model: ModelName, reason: Reason = "", url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Back to the version that was promoted before the one that answers."""
    with Client(url) as client:
        live = client.roll_back(model, reason)
    say(f"{model}: version {live.version} answers (generation {live.generation})", live, as_json)


def history(model: ModelName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Each change of the version that answers: who, when, why, from, to."""
    with Client(url) as client:
        show_all(client.promotions(model), as_json, _HISTORY)
