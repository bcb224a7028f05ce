"""Command line of cmcl, over the REST API.

CMCL_URL and CMCL_EMBEDDINGS_URL set the addresses, CMCL_KEY the key. CMCL_MODEL
replaces the argument MODEL, or the option --model where it is required; not for
embed.

Exit codes: 0 success; 1 rejected or failed; 2 usage error; 3 the followed job
ended without a version, or a rebuild found damage; 4 no server responds; 130
Ctrl-C; 143 SIGTERM.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version as installed_version
from typing import Annotated, Any

import typer
import typer.main

from cmcl.cli import (
    access,
    adopt,
    apply,
    datasets,
    endpoint,
    jobs,
    local,
    models,
    versions,
)
from cmcl.cli.errors import run_command
from cmcl.contract import DISTRIBUTION


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"cmcl {installed_version(DISTRIBUTION)}")
        raise typer.Exit


app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
for name, group in {
    "model": models.app,
    "encoder": models.encoder_app,
    "dataset": datasets.app,
    "job": jobs.app,
    "version": versions.app,
    "collection": endpoint.app,
    "key": access.key_app,
    "webhook": access.webhook_app,
    "admin": local.app,
}.items():
    app.add_typer(group, name=name)
for command in (versions.promote, versions.rollback, versions.history):
    app.command()(command)
models.encoder_app.command("compare")(local.compare_encoders)
app.command("adopt")(adopt.adopt)
app.command("apply")(apply.apply)
app.command()(endpoint.embed)
app.command()(endpoint.search)
app.command()(access.whoami)
app.command()(local.up)
app.command()(local.demo)


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


@cache
def command_tree() -> Any:
    """Return the tree of commands, without the type that Typer shows for flags. The same object at each call."""
    tree = typer.main.get_command(app)
    for each in _tree(tree):
        for option in (*each.params, each.get_help_option(typer.Context(each))):
            if getattr(option, "is_flag", False):
                option.metavar = ""
    return tree


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    return run_command(lambda: command_tree()(args=arguments, prog_name="cmcl"))


def _tree(command: Any) -> Iterator[Any]:
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from _tree(inner)
