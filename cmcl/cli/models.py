"""`cmcl model`: made, branched, deleted, and what a candidate must show."""

from typing import Annotated, Any

import typer
from rich.console import RenderableType

from cmcl.cli.console import Columns, fields, say, show, show_all
from cmcl.cli.options import (
    DEFAULT_URL,
    AsJson,
    ModelName,
    Url,
    Yes,
    exact_version,
    from_options,
)
from cmcl.client import Client, Model, Policy
from cmcl.contract.model import ModelSpec
from cmcl.contract.policy import GatePolicy

app = typer.Typer(
    no_args_is_help=True,
    help="Models: created, listed, branched, deleted, and the policy for their new versions.",
)


def _widths(model: Model) -> str:
    return ", ".join(f"{name} {width}" for name, width in model.modalities.items())


_COLUMNS: Columns[Model] = {
    "model": lambda model: model.name,
    "head": lambda model: model.head_version,
    "live": lambda model: model.live_version,
    "method": lambda model: model.method,
    "width": lambda model: model.width,
    "modalities": _widths,
}
_BOUNDS = ("max-drift", "min-backward-transfer", "min-gain")


@app.command("create")
def create_model(  # noqa: PLR0913 - a model's specification
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the model")],
    modality: Annotated[
        list[str], typer.Option(help="NAME=WIDTH of its features; two at least, so repeat it")
    ],
    *,
    width: Annotated[int, typer.Option(help="of the embeddings")] = 256,
    method: Annotated[
        str, typer.Option(help="of learning; the others are there to compare with")
    ] = "nullspace",
    policy: Annotated[
        str, typer.Option(help="improve (earlier datasets go on teaching) or preserve")
    ] = "improve",
    max_drift: Annotated[
        float | None, typer.Option(help="largest relative drift of earlier scores")
    ] = None,
    stable_index: Annotated[
        bool, typer.Option("--stable-index", help="stored vectors keep their scores")
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(help="passes over each dataset; 10 by default")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="rows of an update, over all ranks; 128 by default")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="of the optimizer; 0.001 by default")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the first heads and the order of rows")] = 0,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Create a model. The same name with the same specification answers the same model."""
    training = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    spec = from_options(
        ModelSpec,
        {
            "width": width,
            "modalities": dict(_modality_width(text) for text in modality),
            "method": method,
            "protection": {
                "policy": policy,
                "max_drift": max_drift,
                "stable_index": stable_index,
            },
            "training": {name: value for name, value in training.items() if value is not None},
            "seed": seed,
        },
    )
    with Client(url) as client:
        show(client.create_model(name, spec), as_json, _view)


@app.command("list")
def list_models(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """All models with their newest and their live version."""
    with Client(url) as client:
        hint = "no models yet; create one: cmcl model create NAME --modality image=1280 --modality text=384"
        show_all(client.models(), as_json, _COLUMNS, hint)


@app.command("show")
def show_model(model: ModelName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """One model with every value of its specification."""
    with Client(url) as client:
        show(client.model(model), as_json, _view)


@app.command("branch")
def branch_model(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="to start from, as NAME@VERSION or NAME VERSION")
    ],
    version_and_name: Annotated[
        list[str],
        typer.Argument(
            metavar="[VERSION] NAME",
            help="the last version that the new model has, unless MODEL says it, and its name",
        ),
    ],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Create a new model that has the versions of another one up to VERSION."""
    source, version, name = _branch(model, version_and_name)
    with Client(url) as client:
        made = client.branch_model(source, version, name)
    say(f"{made.name} continues version {version} of {source}", made, as_json)


@app.command("delete")
def delete_model(model: ModelName, url: Url = DEFAULT_URL, yes: Yes = False) -> None:
    """Remove a model with all its versions."""
    if not yes:
        typer.confirm(f"remove model {model} with all its versions?", abort=True, err=True)
    with Client(url) as client:
        client.delete_model(model)


@app.command("policy")
def model_policy(  # noqa: PLR0913 - each bound is an option
    model: ModelName,
    *,
    max_drift: Annotated[float | None, typer.Option(help="of earlier datasets' scores")] = None,
    min_backward_transfer: Annotated[
        float | None, typer.Option(help="of recall, e.g. -0.02 for two points")
    ] = None,
    min_gain: Annotated[float | None, typer.Option(help="of recall on the new dataset")] = None,
    manual_approval: Annotated[
        bool | None, typer.Option(help="hold candidates until somebody approves")
    ] = None,
    priority: Annotated[
        str | None, typer.Option(help="of its datasets in the line for ranks: low, normal or high")
    ] = None,
    unset: Annotated[
        list[str] | None, typer.Option(help=f"drop a bound: {', '.join(_BOUNDS)}; repeatable")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show what a candidate must achieve before it is published; options change it."""
    given: dict[str, Any] = {
        "max_drift": max_drift,
        "min_backward_transfer": min_backward_transfer,
        "min_gain": min_gain,
        "manual_approval": manual_approval,
        "priority": priority,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    changes.update(dict.fromkeys(map(_bound, unset or ()), None))
    with Client(url) as client:
        policy = client.policy(model)
        if changes:
            kept = policy.model_dump(include=set(GatePolicy.model_fields))
            wanted = from_options(GatePolicy, {**kept, **changes})
            policy = client.set_policy(model, wanted, policy.revision)
    show(policy, as_json, _policy_view)


def _view(model: Model) -> RenderableType:
    origin = model.branched_from
    return fields(
        {
            "model": model.name,
            "owner": model.owner,
            "newest version": model.head_version,
            "live version": model.live_version,
            "branched from": f"{origin.model}@{origin.version}" if origin else None,
            "width": model.width,
            "modalities": _widths(model),
            "method": model.method,
            "protection": _settings(model.protection),
            "training": _settings(model.training),
            "seed": model.seed,
            "created": model.created_at,
        }
    )


def _policy_view(policy: Policy) -> RenderableType:
    return fields(
        {
            "max drift": policy.max_drift,
            "min backward transfer": policy.min_backward_transfer,
            "min gain": policy.min_gain,
            "manual approval": "yes" if policy.manual_approval else "no",
            "priority": policy.priority,
        }
    )


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _modality_width(text: str) -> tuple[str, int]:
    name, _, width = text.partition("=")
    if not (width.isascii() and width.isdecimal()):
        raise typer.BadParameter(
            f"{text!r}: write NAME=WIDTH, for example image=1280", param_hint="--modality"
        )
    return name, int(width)


def _branch(model: str, given: list[str]) -> tuple[str, int, str]:
    """Source, version and new name from `MODEL@VERSION NAME` or `MODEL VERSION NAME`."""
    *version, name = given
    if len(version) > 1 or (version and not (version[0].isascii() and version[0].isdecimal())):
        raise typer.BadParameter(f"write MODEL@VERSION NAME, not {' '.join((model, *given))}")
    return *exact_version(model, int(version[0]) if version else None), name


def _bound(text: str) -> str:
    if text not in _BOUNDS:
        words = f"{text!r}: permitted are {', '.join(_BOUNDS)}"
        raise typer.BadParameter(words, param_hint="--unset")
    return text.replace("-", "_")
