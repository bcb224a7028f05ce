"""`cmcl mirror`: versions, with metrics, lineage and pictures, in other people's tools."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmcl.cli.errors import CommandError
from cmcl.cli.options import DEFAULT_URL, OfAnyModel, Url
from cmcl.client import Client
from cmcl.client.concurrency import Clock

if TYPE_CHECKING:
    from cmcl.mirror.loop import Target

app = typer.Typer(
    no_args_is_help=True,
    help="Copy versions to MLflow, Weights & Biases, TensorBoard or OpenLineage, and follow new ones.",
)

Once = Annotated[
    bool, typer.Option("--once", help="end when everything is written, instead of following")
]
StateFile = Annotated[
    Path,
    typer.Option(
        "--state", metavar="FILE", dir_okay=False, help="remembers what was written; keep it"
    ),
]


@app.command("mlflow")
def mirror_mlflow(
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_URI", help="address of the server; default MLflow's own"
        ),
    ] = None,
    experiment: Annotated[str, typer.Option(help="experiment with a run for each model")] = "cmcl",
    model: OfAnyModel = None,
    *,
    once: Once = False,
    state: StateFile = Path("cmcl-mirror-mlflow.json"),
    url: Url = DEFAULT_URL,
) -> None:
    """Write a run for each model and a step for each version. Needs the package mlflow-skinny."""

    def target() -> "Target":
        from cmcl.mirror.mlflow import MlflowTarget

        return MlflowTarget(tracking_uri, experiment, url)

    _mirror(target, state, model, once, url)


@app.command("wandb")
def mirror_wandb(  # noqa: PLR0913 - options of a command
    project: Annotated[str, typer.Option(help="project with a run for each model")] = "cmcl",
    folder: Annotated[
        Path, typer.Option(file_okay=False, help="folder for the files of runs")
    ] = Path(),
    offline: Annotated[
        bool, typer.Option("--offline", help="only write files; `wandb sync` sends them")
    ] = False,
    model: OfAnyModel = None,
    *,
    once: Once = False,
    state: StateFile = Path("cmcl-mirror-wandb.json"),
    url: Url = DEFAULT_URL,
) -> None:
    """Write a run for each model and a step for each version. Needs the package wandb."""

    def target() -> "Target":
        from cmcl.mirror.wandb import WandbTarget

        return WandbTarget(project, folder, offline, url)

    _mirror(target, state, model, once, url)


@app.command("tensorboard")
def mirror_tensorboard(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", file_okay=False, help="log folder of TensorBoard")
    ],
    model: OfAnyModel = None,
    *,
    once: Once = False,
    state: StateFile = Path("cmcl-mirror-tensorboard.json"),
    url: Url = DEFAULT_URL,
) -> None:
    """Write scalars with a step for each version. Needs the package tensorboardX."""

    def target() -> "Target":
        from cmcl.mirror.tensorboard import TensorboardTarget

        return TensorboardTarget(folder)

    _mirror(target, state, model, once, url)


@app.command("openlineage")
def mirror_openlineage(  # noqa: PLR0913 - options of a command
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="server that takes the events, http(s)://...")
    ],
    namespace: Annotated[str, typer.Option(help="namespace of jobs and datasets")] = "cmcl",
    key: Annotated[
        str | None, typer.Option(envvar="OPENLINEAGE_API_KEY", help="key of that server")
    ] = None,
    model: OfAnyModel = None,
    *,
    once: Once = False,
    state: StateFile = Path("cmcl-mirror-openlineage.json"),
    url: Url = DEFAULT_URL,
) -> None:
    """Send a run for each dataset that was learned, or failed. Needs the package openlineage-python."""

    def target() -> "Target":
        from cmcl.mirror.openlineage import OpenlineageTarget

        return OpenlineageTarget(address, namespace, key, url)

    _mirror(target, state, model, once, url)


def _mirror(
    make: "Callable[[], Target]", state: Path, model: str | None, once: bool, url: str
) -> None:
    """Run the loop. Raises CommandError."""
    # With the pictures, which most commands do not need.
    from cmcl.mirror.loop import Mirror, MirrorError, State

    try:
        with Client(url) as client:
            target = make()
            try:
                mirror = Mirror(client, target, State.read(state, url), model, Clock())
                if once:
                    mirror.catch_up()
                else:
                    mirror.follow()
            finally:
                target.close()
    except MirrorError as error:
        raise CommandError(str(error)) from error
