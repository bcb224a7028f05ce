"""`cmcl admin`: what an operator does on the machine of the service, while no service runs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cmcl.checkout import check_parts
from cmcl.terminal.options import AsJson

app = typer.Typer(
    no_args_is_help=True,
    help="For operators, on the machine of the service, while no service runs.",
)


@app.command()
def rebuild(
    database_url: Annotated[
        str | None,
        typer.Option(envvar="CMCL_DATABASE_URL", help="the new, empty one", show_envvar=True),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            envvar="CMCL_STORE_URI",
            help="root of object storage: s3://..., file://..., or a folder",
        ),
    ] = None,
    verify: Annotated[
        Literal["full", "manifests"],
        typer.Option(help="full: every byte of every file; manifests: that files are there"),
    ] = "full",
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="look and report only")] = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="put damaged versions in place where a copy lies")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restore a lost database from object storage. Stop every service first.

    Exit code 3: something is damaged, and everything else was restored.
    """
    options = {"--dry-run": dry_run, "--mend": mend, "--json": as_json}
    given = [option for option, is_given in options.items() if is_given]
    places = {"CMCL_DATABASE_URL": database_url, "CMCL_STORE_URI": store and _uri(store)}
    environment = {name: value for name, value in places.items() if value is not None}
    code = _of_the_service(["admin", "rebuild", "--verify", verify, *given], environment)
    raise typer.Exit(code)


def _uri(store: str) -> str:
    """A folder is given as a path, everything else as a URI."""
    return store if "://" in store else Path(store).resolve().as_uri()


def _of_the_service(arguments: list[str], environment: dict[str, str]) -> int:
    """Run a command of the service; its exit code. The client and the service share no code."""
    check_parts("cmcl admin", "alembic")
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
