"""`cmcl mirror`: versions, with metrics, lineage and pictures, in MLflow."""

from typing import Annotated

import typer

from cmcl.cli.errors import CommandError
from cmcl.cli.options import DEFAULT_URL, OfAnyModel, Url
from cmcl.client import Client
from cmcl.client.concurrency import Clock


def mirror(
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_URI", help="address of the server; default MLflow's own"
        ),
    ] = None,
    experiment: Annotated[str, typer.Option(help="experiment with a run for each model")] = "cmcl",
    model: OfAnyModel = None,
    *,
    once: Annotated[
        bool, typer.Option("--once", help="end when everything is written, instead of following")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Copy versions to MLflow, and follow new ones: a run for each model, a step for each version.

    Needs the package mlflow-skinny.
    """
    # With the pictures, which most commands do not need.
    from cmcl.mirror import Mirror, MirrorError, MlflowTarget

    try:
        with Client(url) as client:
            copy = Mirror(client, MlflowTarget(tracking_uri, experiment, url), model, Clock())
            if once:
                copy.catch_up()
            else:
                copy.follow()
    except MirrorError as error:
        raise CommandError(str(error)) from error
