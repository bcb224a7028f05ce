"""`python -m service`: settings, app, server. `... keys`, `... migrate`, `... admin`: what else there is."""

import argparse
import contextlib
import logging.config
import sys
from collections.abc import Callable, Iterator, Sequence

from pydantic import ValidationError

from service import admin_commands, key_commands
from service.database.engine import open_database
from service.database.migrations import upgrade
from service.errors import ServiceError
from service.settings import Settings
from service.telemetry.logs import log_config, secret_texts

_USAGE = 2
_SWITCH_SECONDS = 0.001


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it, or do what is asked. The exit status."""
    options = _parser().parse_args(arguments)
    run: Callable[[Settings, argparse.Namespace], int | None] = options.run
    try:
        settings = Settings()
    except ValidationError as error:
        print("\n".join(_complaints(error)), file=sys.stderr)
        return _USAGE
    try:
        return run(settings, options) or 0
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="The control plane. Its settings are CMCL_* variables: see docs/settings.md.",
    )
    parser.set_defaults(run=_serve)
    commands = parser.add_subparsers(metavar="COMMAND")
    key_commands.add_commands(commands.add_parser("keys", help="make, list and revoke keys"))
    commands.add_parser(
        "migrate",
        help="bring the database's tables up to date, before services of this release start",
    ).set_defaults(run=_migrate)
    admin_commands.add_commands(
        commands.add_parser("admin", help="restore a lost database, while no service runs")
    )
    return parser


def _serve(settings: Settings, _: argparse.Namespace) -> int:
    # They take seconds to import: wrong settings, and keys, need not wait for them.
    from service.api.server import make_server
    from service.app import create_app
    from service.stale_database import check_at_start

    # With Python's own 5 ms, each thread that computes delays each step of the event loop by so long.
    sys.setswitchinterval(_SWITCH_SECONDS)
    config = log_config(settings.log_level, secret_texts(settings))
    logging.config.dictConfig(config)
    app = create_app(settings)
    try:
        check_at_start(app.state.context)
        server = make_server(app, settings, config)
        with contextlib.suppress(KeyboardInterrupt):
            server.run()
        return 0 if server.started else 1
    finally:
        # The lifespan does it too, but has not begun where the check fails or the port is taken.
        app.state.context.database.close()


def _migrate(settings: Settings, _: argparse.Namespace) -> None:
    """Services do it themselves when they start; a deployment does it before, and stops if it fails."""
    database = open_database(settings.database_url)
    try:
        upgrade(database)
    finally:
        database.close()


def _complaints(error: ValidationError) -> Iterator[str]:
    """One line per problem, naming the variable. Values are not repeated: some are secrets."""
    for problem in error.errors(include_input=False, include_context=False, include_url=False):
        message = problem["msg"].removeprefix("Value error, ")
        # What concerns several variables names them itself; within one, the entry is named too.
        variable, entries = problem["loc"][:1], problem["loc"][1:]
        names = [f"CMCL_{str(part).upper()}" for part in variable]
        yield ": ".join([*names, *map(str, entries), message])


if __name__ == "__main__":
    sys.exit(main())
