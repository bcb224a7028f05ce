"""`cmcl model`: create, branch, delete, and set policies."""

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
    help="Models: create, list, branch, delete, and set the policy for new versions.",
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
    name: Annotated[str, typer.Argument(metavar="NAME", help="name of the model")],
    modality: Annotated[
        list[str],
        typer.Option(help="NAME=WIDTH of the features; repeat for at least two modalities"),
    ],
    *,
    width: Annotated[int, typer.Option(help="width of the embeddings")] = 256,
    method: Annotated[
        str, typer.Option(help="training method; methods other than nullspace are baselines")
    ] = "nullspace",
    policy: Annotated[
        str, typer.Option(help="improve (replay earlier datasets) or preserve (keep their scores)")
    ] = "improve",
    max_drift: Annotated[
        float | None, typer.Option(help="largest relative drift of earlier scores")
    ] = None,
    stable_index: Annotated[
        bool, typer.Option("--stable-index", help="keep the scores of stored vectors")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="passes over each dataset; default 10")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="rows per update, over all ranks; default 128")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="learning rate of the optimizer; default 0.001")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the initial heads and the order of rows")] = 0,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Create a model. Repeating the command with the same options returns the same model."""
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
    """List models with their newest and live versions."""
    with Client(url) as client:
        hint = "no models yet; create one: cmcl model create NAME --modality image=1280 --modality text=384"
        show_all(client.models(), as_json, _COLUMNS, hint)


@app.command("show")
def show_model(model: ModelName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show a model with its full specification."""
    with Client(url) as client:
        show(client.model(model), as_json, _view)


@app.command("branch")
def branch_model(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="source, as NAME@VERSION or NAME VERSION")
    ],
    version_and_name: Annotated[
        list[str],
        typer.Argument(
            metavar="[VERSION] NAME",
            help="last version to inherit, unless MODEL has it, and name of the new model",
        ),
    ],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Create a model that inherits the versions of another one up to VERSION."""
    source, version, name = _branch(model, version_and_name)
    with Client(url) as client:
        made = client.branch_model(source, version, name)
    say(f"{made.name} continues version {version} of {source}", made, as_json)


@app.command("delete")
def delete_model(model: ModelName, url: Url = DEFAULT_URL, yes: Yes = False) -> None:
    """Delete a model with all its versions."""
    if not yes:
        typer.confirm(f"Delete model {model} with all its versions?", abort=True, err=True)
    with Client(url) as client:
        client.delete_model(model)


@app.command("policy")
def model_policy(  # noqa: PLR0913 - each bound is an option
    model: ModelName,
    *,
    max_drift: Annotated[
        float | None, typer.Option(help="largest relative drift of earlier scores")
    ] = None,
    min_backward_transfer: Annotated[
        float | None,
        typer.Option(help="smallest backward transfer of recall, e.g. -0.02 for two points"),
    ] = None,
    min_gain: Annotated[
        float | None, typer.Option(help="smallest gain of recall on the new dataset")
    ] = None,
    manual_approval: Annotated[
        bool | None, typer.Option(help="hold candidates for manual approval")
    ] = None,
    priority: Annotated[
        str | None, typer.Option(help="priority of training jobs: low, normal or high")
    ] = None,
    unset: Annotated[
        list[str] | None, typer.Option(help=f"remove a bound: {', '.join(_BOUNDS)}; repeatable")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show or change the policy, which a candidate must meet before it is published."""
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
    """Parse `MODEL@VERSION NAME` or `MODEL VERSION NAME`."""
    *version, name = given
    if len(version) > 1 or (version and not (version[0].isascii() and version[0].isdecimal())):
        raise typer.BadParameter(f"write MODEL@VERSION NAME, not {' '.join((model, *given))}")
    return *exact_version(model, int(version[0]) if version else None), name


def _bound(text: str) -> str:
    if text not in _BOUNDS:
        message = f"{text!r}: permitted are {', '.join(_BOUNDS)}"
        raise typer.BadParameter(message, param_hint="--unset")
    return text.replace("-", "_")
