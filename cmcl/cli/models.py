"""`cmcl model`: create, branch, merge, delete, and set gates."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from cmcl.cli.console import Cell, Columns, fields, say, show, show_all
from cmcl.cli.options import (
    DEFAULT_URL,
    AsJson,
    ListOrder,
    ModelName,
    MostItems,
    Url,
    Watch,
    Yes,
    exact_version,
    from_options,
    model_and_argument,
)
from cmcl.cli.progress import follow
from cmcl.client import Client, Encoder, Model, ModelGate, ModelSummary, QueryDrift, SummaryJob
from cmcl.client.wire import without_none
from cmcl.contract.model import Gate, ModalitySpec, ModelSpec

app = typer.Typer(
    no_args_is_help=True,
    help="Models: create, list, branch, merge, delete, and set the gate of new versions.",
)


_BOUNDS = ("max-drift", "min-backward-transfer", "min-overlap", "min-gain")


@app.command("create")
def create_model(  # noqa: PLR0913 - a model's specification
    name: Annotated[str, typer.Argument(metavar="NAME", help="name of the model")],
    modality: Annotated[
        list[str],
        typer.Option(
            help="NAME=WIDTH of the features, or NAME=@ENCODER for raw items; repeat for at least two "
            "modalities"
        ),
    ],
    *,
    width: Annotated[int, typer.Option(help="width of the embeddings")] = 256,
    policy: Annotated[
        str | None,
        typer.Option(
            help="improve (solve all heads from the moments of all datasets, the default) or preserve (train on "
            "rows under the projected gradient, keep earlier scores)"
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="a method in place of a policy: vanilla (no protection), or one of an installed package"
        ),
    ] = None,
    max_drift: Annotated[
        float | None,
        typer.Option(
            help="largest relative drift of earlier scores; default: 0.5 under preserve, else none"
        ),
    ] = None,
    kept_energy: Annotated[
        float | None,
        typer.Option(
            help="under preserve: share of the energy of earlier scores whose entries are blocked; default 0.8"
        ),
    ] = None,
    centred: Annotated[
        bool | None,
        typer.Option(
            "--centred/--not-centred",
            help="under improve: centre features in a narrow cone by the mean of the modality's first dataset; "
            "default: centred",
        ),
    ] = None,
    erasable: Annotated[
        bool,
        typer.Option(help="under improve: keep what erasing single rows of datasets takes"),
    ] = False,
    lift: Annotated[
        int | None,
        typer.Option(
            help="random features appended to each modality; default: up to 1024 under improve, else 0"
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over each dataset; default 10")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="rows per update, over all ranks; default 128")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="learning rate of the optimizer; default 0.001")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="temperature of InfoNCE; default 0.07")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="of the products of an update: float32 (the default) or bfloat16"),
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the initial heads and the order of rows")] = 0,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Create a model. Repeating the command with the same options returns the same model."""
    options = without_none(
        width=width,
        policy=policy,
        method=method,
        max_drift=max_drift,
        kept_energy=kept_energy,
        centred=centred,
        erasable=erasable or None,
        lift=lift,
        seed=seed,
        training=without_none(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            temperature=temperature,
            precision=precision,
        ),
    )
    with Client(url) as client:
        modalities = _bound_to_encoders(client, dict(map(_modality, modality)))
        spec = from_options(ModelSpec, {**options, "modalities": modalities})
        show(client.create_model(name, spec), as_json, specification_view)


@app.command("add-modality")
def add_modality(
    model: ModelName,
    modality: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME=WIDTH|NAME=@ENCODER", help="name, and width of the features or encoder"
        ),
    ] = None,
    *,
    aligned_to: Annotated[
        str | None,
        typer.Option(
            help="modality of the same items by another encoder, whose embeddings its head reproduces; no other head "
            "changes"
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Add a modality to a model. Versions that exist do not have it; the next dataset may use it."""
    model, text = model_and_argument(model, modality)
    name, value = _modality(text)
    with Client(url) as client:
        width, encoder = (None, value) if isinstance(value, str) else (value, None)
        added = client.add_modality(model, name, width, encoder, aligned_to)
        show(added, as_json, specification_view)


encoder_app = typer.Typer(
    no_args_is_help=True,
    help="Encoders that the operator declared, for raw items, and a comparison of any.",
)

_ENCODER_COLUMNS: Columns[Encoder] = {
    "encoder": lambda encoder: encoder.name,
    "takes": lambda encoder: encoder.takes,
    "width": lambda encoder: encoder.width,
    "kind and model": lambda encoder: encoder.title,
}


@encoder_app.command("list")
def list_encoders(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the encoders that models can bind a modality to."""
    with Client(url) as client:
        hint = "no encoder is declared; on one machine: cmcl up --encoder NAME=KIND:TAKES:WIDTH[:MODEL]"
        show_all(client.encoders(), as_json, _ENCODER_COLUMNS, hint)


@app.command("list")
def list_models(
    order: ListOrder = "asc",
    limit: MostItems = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List models with their live and newest versions, drift and recall of the newest, and jobs."""
    with Client(url) as client:
        hint = "no models yet; create one: cmcl model create NAME --modality image=1280 --modality text=384"
        show_all(client.overview(order), as_json, SUMMARY_COLUMNS, hint, limit)


@app.command("show")
def show_model(model: ModelName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show a model: its full specification, live and newest version, drift, recall and jobs."""
    with Client(url) as client:
        parts = client.summary(model), client.model(model)
        details = ModelDetails(
            **{name: value for part in parts for name, value in part},
            query_drift=client.query_drift(model),
        )
    show(details, as_json, details_view)


@app.command("merge")
def merge_model(
    model: ModelName,
    source: Annotated[
        str,
        typer.Option("--from", metavar="OTHER@VERSION", help="version whose datasets are added"),
    ],
    watch: Watch = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Add the datasets of another model's version to a model. No rows are read; the other model stays as it is."""
    with Client(url) as client:
        job = client.merge_model(model, source)
        say(f"job {job.id} merges {source} into model {model}", job, as_json)
        if watch:
            follow(client, job.id, as_json)


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
    """Create a model that inherits the versions of another one, by default of CMCL_MODEL, up to VERSION."""
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


@app.command("gate")
def model_gate(  # noqa: PLR0913 - each bound is an option
    model: ModelName,
    *,
    max_drift: Annotated[
        float | None, typer.Option(help="largest relative drift of earlier scores")
    ] = None,
    bounds: Annotated[
        str | None,
        typer.Option(
            help="auto: bounds that are not set follow from what chance changes between the halves of each dataset, and a "
            "candidate that violates one is held; set: they are not checked"
        ),
    ] = None,
    min_backward_transfer: Annotated[
        float | None,
        typer.Option(help="smallest backward transfer of recall, e.g. -0.02 for two points"),
    ] = None,
    min_overlap: Annotated[
        float | None,
        typer.Option(help="smallest share of the ten best results that stay the same, e.g. 0.5"),
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
    """Show or change the gate, which a candidate must meet before it is published."""
    changes = without_none(
        bounds=bounds,
        max_drift=max_drift,
        min_backward_transfer=min_backward_transfer,
        min_overlap=min_overlap,
        min_gain=min_gain,
        manual_approval=manual_approval,
        priority=priority,
    )
    changes.update(dict.fromkeys(map(_bound, unset or ()), None))
    with Client(url) as client:
        gate = client.gate(model)
        if changes:
            kept = gate.model_dump(include=set(Gate.model_fields))
            wanted = from_options(Gate, {**kept, **changes})
            gate = client.set_gate(model, wanted, gate.revision)
    show(gate, as_json, _gate_view)


def _gate_view(gate: ModelGate) -> RenderableType:
    derived = "by chance" if gate.bounds == "auto" else None
    return fields(
        {
            "bounds": gate.bounds,
            "max drift": gate.max_drift,
            "min backward transfer": derived
            if gate.min_backward_transfer is None
            else gate.min_backward_transfer,
            "min overlap": derived if gate.min_overlap is None else gate.min_overlap,
            "min agreement": derived,
            "min gain": gate.min_gain,
            "manual approval": "yes" if gate.manual_approval else "no",
            "priority": gate.priority,
        }
    )


def _modality(text: str) -> tuple[str, int | str]:
    """Parse NAME=WIDTH or NAME=@ENCODER. Raises BadParameter."""
    name, _, value = text.partition("=")
    if value.startswith("@") and len(value) > 1:
        return name, value[1:]
    if not (value.isascii() and value.isdecimal()):
        raise typer.BadParameter(
            f"{text!r}: write NAME=WIDTH or NAME=@ENCODER, for example image=1280 or "
            "image=@clip-image; `cmcl encoder list` shows the encoders",
            param_hint="--modality",
        )
    return name, int(value)


def _bound_to_encoders(client: Client, modalities: dict[str, int | str]) -> dict[str, ModalitySpec]:
    """The modalities with the widths of their encoders. Raises BadParameter for an unknown encoder."""
    wanted = {value for value in modalities.values() if isinstance(value, str)}
    widths = {each.name: each.width for each in client.encoders()} if wanted else {}
    for name in sorted(wanted - widths.keys()):
        known = ", ".join(sorted(widths)) or "none is declared (docs/encoders.md)"
        raise typer.BadParameter(
            f"no encoder {name!r}; permitted: {known}", param_hint="--modality"
        )
    return {
        modality: from_options(
            ModalitySpec,
            {"width": widths[value], "encoder": value}
            if isinstance(value, str)
            else {"width": value},
            option="--modality",
        )
        for modality, value in modalities.items()
    }


def _branch(model: str, given: list[str]) -> tuple[str, int, str]:
    """Parse `MODEL@VERSION NAME`, `MODEL VERSION NAME`, or `VERSION NAME` with CMCL_MODEL."""
    *version, name = given
    if len(version) > 1 or (version and not (version[0].isascii() and version[0].isdecimal())):
        raise typer.BadParameter(f"write MODEL@VERSION NAME, not {' '.join((model, *given))}")
    return *exact_version(model, int(version[0]) if version else None), name


def _bound(text: str) -> str:
    if text not in _BOUNDS:
        message = f"{text!r}: permitted are {', '.join(_BOUNDS)}"
        raise typer.BadParameter(message, param_hint="--unset")
    return text.replace("-", "_")


class ModelDetails(Model, ModelSummary):
    """The specification of a model and its state: newest version, drift, jobs."""

    query_drift: QueryDrift


def free_shares(shares: Mapping[str, float]) -> str:
    """Format the free share of each head."""
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())


def _jobs(model: ModelSummary) -> str | None:
    counts = {"waiting": model.jobs.waiting, "running": model.jobs.running, "held": model.jobs.held}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or None


def _work(job: SummaryJob | None) -> str | None:
    return f"{job.state}: {job.dataset_name}" if job else None


SUMMARY_COLUMNS: Columns[ModelSummary] = {
    "model": lambda model: model.name,
    "policy": lambda model: model.policy or model.method,
    "live": lambda model: model.live_version,
    "newest": lambda model: model.newest.version if model.newest else None,
    "drift": lambda model: model.newest.max_drift if model.newest else None,
    "recall": lambda model: model.newest.mean_recall if model.newest else None,
    "jobs": _jobs,
    "in work": lambda model: _work(model.current),
    "ended last": lambda model: _work(model.last_ended),
}


def specification_view(model: Model) -> RenderableType:
    """Render the specification of a model."""
    return fields(_specification(model))


def details_view(model: ModelDetails) -> RenderableType:
    """Render the specification and the state of a model."""
    newest = model.newest
    return fields(
        {
            **_specification(model),
            "newest version": f"{newest.version} ({newest.dataset_name})" if newest else None,
            "largest drift": newest.max_drift if newest else None,
            "permitted drift": model.drift_bound,
            "mean recall at 1": newest.mean_recall if newest else None,
            "free": free_shares(newest.free_share) if newest else None,
            "drift of queries": _query_drift(model.query_drift),
            "jobs": _jobs(model),
            "in work": _job_line(model.current),
            "ended last": _job_line(model.last_ended),
        }
    )


def _query_drift(drift: QueryDrift) -> str | None:
    """The newest level of each modality; above 1 is drift."""
    levels = {name: windows[-1].level for name, windows in drift.windows.items() if windows}
    return ", ".join(
        f"{name} {level:.2f}" + (" (drifts)" if name in drift.drifting else "")
        for name, level in levels.items()
    )


def _specification(model: Model) -> dict[str, Cell]:
    origin = model.branched_from
    modalities = (
        f"{name} {each.width}" + (f" ({each.encoder})" if each.encoder else "")
        for name, each in model.modalities.items()
    )
    return {
        "model": model.name,
        "owner": model.owner,
        "newest version": model.head_version,
        "live version": model.live_version,
        "branched from": f"{origin.model}@{origin.version}" if origin else None,
        "width": model.width,
        "modalities": ", ".join(modalities),
        "policy": model.policy,
        "method": model.method,
        "erasable": model.erasable,
        "permitted drift": model.max_drift,
        "training": _settings(dict(model.training)),
        "seed": model.seed,
        "created": model.created_at,
    }


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _job_line(job: SummaryJob | None) -> str | None:
    if job is None:
        return None
    message = f": {job.message}" if job.message else ""
    return f"{job.job} ({job.dataset_name}) {job.state}{message}"
