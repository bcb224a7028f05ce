"""`cmcl version`, `promote`, `rollback`, `history`: versions and the live version."""

from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Annotated

import typer

from cmcl.cli.console import (
    Columns,
    say,
    show,
    show_all,
    stderr,
)
from cmcl.cli.errors import CommandError
from cmcl.cli.model_views import free_shares
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
from cmcl.cli.version_views import needs_outcomes, outcomes_of, version_view
from cmcl.client import Client, Promotion, VersionFigures

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
_COLUMNS: Columns[VersionFigures] = {
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
        found = list(islice(client.history(model, order, by_dataset=by_dataset), limit))
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

        drawn = version_pictures(found, found.manifest.spec.drift_bound)
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
