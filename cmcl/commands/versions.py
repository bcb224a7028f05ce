"""`cmcl version`, `promote`, `rollback`, `history`: versions, and which one answers."""

import typer

from cmcl.client import Client
from cmcl.terminal.console import Columns, say, show, show_all
from cmcl.terminal.exits import Refused
from cmcl.terminal.options import (
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
from cmcl.terminal.version_view import version_view
from cmcl.types import Promotion, VersionSummary

app = typer.Typer(
    no_args_is_help=True,
    help="Versions: what each dataset made of a model, listed, shown, retired.",
)

_NO_VERSION = (
    "model {0!r} has no version yet; each dataset that is learned makes one: cmcl dataset add"
)
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
        show_all(client.versions(model), as_json, _COLUMNS, _NO_VERSION.format(model))


@app.command("show")
def show_version(
    model: ModelOfVersion,
    version: VersionNumber = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """One version, by default the newest: what became of each dataset, certificate, capacity, lineage."""
    name, number = model_version(model, version)
    with Client(url) as client:
        number = number or client.model(name).head_version
        if number is None:
            raise Refused(_NO_VERSION.format(name))
        show(client.version(name, number), as_json, version_view)


@app.command("retire")
def retire_version(
    model: ModelOfVersion, version: VersionNumber = None, url: Url = DEFAULT_URL, yes: Yes = False
) -> None:
    """Retire a version."""
    name, number = exact_version(model, version)
    if not yes:
        typer.confirm(f"retire version {number} of {name}?", abort=True, err=True)
    with Client(url) as client:
        client.retire_version(name, number)


def promote(
    model: ModelOfVersion,
    version: VersionNumber = None,
    reason: Reason = "",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Make a version the live one, which answers queries."""
    name, number = exact_version(model, version)
    with Client(url) as client:
        live = client.promote(name, number, reason)
    say(f"{name}: version {live.version} answers (generation {live.generation})", live, as_json)


def rollback(
    model: ModelName, reason: Reason = "", url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Make the version live again that was promoted before the one that is live now."""
    with Client(url) as client:
        live = client.roll_back(model, reason)
    say(f"{model}: version {live.version} answers (generation {live.generation})", live, as_json)


def history(model: ModelName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Each change of the live version: who, when, why, from, to."""
    with Client(url) as client:
        show_all(
            client.promotions(model), as_json, _HISTORY, f"no version of {model} was live so far"
        )
