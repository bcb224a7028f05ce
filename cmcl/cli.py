"""The command line, over the same REST API that everybody uses.

Exit codes: 0 done; 1 refused or failed; 2 not understood; 3 the job that was followed ended without
a version, or a rebuild found damage; 4 no server answers; 130 Ctrl-C. A key is read from CMCL_KEY.
"""

from collections.abc import Sequence

import typer

from cmcl.commands import (
    admin,
    candidates,
    collections,
    datasets,
    jobs,
    keys,
    local,
    models,
    preflights,
    queries,
    versions,
    webhooks,
)
from cmcl.terminal.exits import ended

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
for name, group in {
    "model": models.app,
    "dataset": datasets.app,
    "job": jobs.app,
    "version": versions.app,
    "candidate": candidates.app,
    "collection": collections.app,
    "key": keys.app,
    "webhook": webhooks.app,
    "admin": admin.app,
}.items():
    app.add_typer(group, name=name)
for command in (versions.promote, versions.rollback, versions.history):
    app.command()(command)
app.command("upload")(datasets.upload_files)
app.command()(preflights.preflight)
for query in (queries.embed, queries.similarity, queries.migrate):
    app.command()(query)
app.command()(collections.search)
app.command()(keys.whoami)
app.command()(local.up)
app.command()(local.demo)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; answers the exit code."""
    return ended(lambda: app(args=arguments, prog_name="cmcl"))
