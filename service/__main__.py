"""`python -m service`: settings, app, server. `... keys`, `... migrate`, `... admin`: other commands."""

import argparse
import contextlib
import logging.config
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TypeVar

from pydantic import ValidationError

from cmcl.contract.api.access import Scope
from service.auth.keys import OPERATOR, NewKey, create_key, mint, revoke_key
from service.core.clock import utc_now
from service.core.errors import ServiceError, Unprocessable
from service.core.settings import Settings
from service.database.engine import Database, Seek, open_database
from service.database.migrations import upgrade
from service.database.queries import keys
from service.database.queries.keys import KeyRow
from service.events.webhook_secrets import new_key
from service.telemetry.logs import log_config, secret_texts

T = TypeVar("T")

_PAGE = 200
_COLUMNS = ("id", "name", "owner", "scopes", "created", "expires", "last used", "state")
_REBUILD = """Rebuild an empty database (CMCL_DATABASE_URL) from object storage (CMCL_STORE_URI).
Stop every service first. Exit status 3: something is damaged, and everything else was restored."""
_USAGE = 2
_SWITCH_SECONDS = 0.001


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service or a subcommand. Returns the exit status."""
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
    _add_key_commands(commands.add_parser("keys", help="make, list and revoke keys"))
    commands.add_parser(
        "migrate",
        help="bring the database's tables up to date, before services of this release start",
    ).set_defaults(run=_migrate)
    _add_admin_commands(
        commands.add_parser("admin", help="restore a lost database, while no service runs")
    )
    return parser


def _serve(settings: Settings, _: argparse.Namespace) -> int:
    # They take seconds to import: wrong settings, and keys, need not wait for them.
    from service.app import create_app, make_server
    from service.database.stale import check_at_start

    # The default switch interval lets each busy thread delay the event loop by 5 ms.
    sys.setswitchinterval(_SWITCH_SECONDS)
    config = log_config(settings.log_level, secret_texts(settings))
    logging.config.dictConfig(config)
    app = create_app(settings)
    try:
        check_at_start(app.state.context.store, app.state.context.database)
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


def _add_key_commands(parser: argparse.ArgumentParser) -> None:
    """create, list, revoke, signing-key and encryption-key; each sets `run`, which gets settings and options."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    create = commands.add_parser("create", help="make a key and print it, this once")
    create.add_argument("name", help="for people, and for the history of what the key does")
    create.add_argument(
        "--scopes",
        required=True,
        type=_scopes,
        metavar="A,B",
        help=f"what it permits: {', '.join(Scope)}",
    )
    create.add_argument("--owner", help="whose things it sees and makes; default: default")
    create.add_argument("--expires-in-days", type=int, metavar="N", help="default: never")
    create.set_defaults(run=_create)
    listing = commands.add_parser("list", help="all keys, without their secrets")
    listing.set_defaults(run=_list)
    revoke = commands.add_parser("revoke", help="take a key back")
    revoke.add_argument("key", help="its id: key-...")
    revoke.set_defaults(run=_revoke)
    signing = commands.add_parser(
        "signing-key",
        help="make the pair that signs and checks the list of keys for replicas, and receipts",
    )
    signing.set_defaults(run=_make_signing_key)
    encryption = commands.add_parser(
        "encryption-key", help="make a key that encrypts secrets of webhooks in the database"
    )
    encryption.set_defaults(run=_make_encryption_key)


def _scopes(text: str) -> tuple[Scope, ...]:
    try:
        return tuple(Scope(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; permitted: {', '.join(Scope)}") from error


def _create(settings: Settings, options: argparse.Namespace) -> None:
    """The key alone on standard output, so that a script can keep it."""
    new = _new_key(options)
    minted = mint()

    def work(database: Database) -> KeyRow:
        with database.write() as connection:
            return create_key(connection, new, minted, OPERATOR, utc_now())

    made = _with_database(settings, work)
    print(f"{made.id} of owner {made.owner!r}; it is not shown again:", file=sys.stderr)
    print(minted.text)


def _new_key(options: argparse.Namespace) -> NewKey:
    try:
        return NewKey(
            name=options.name,
            scopes=options.scopes,
            owner=options.owner,
            expires_in_days=options.expires_in_days,
        )
    except ValidationError as error:
        problems = [f"{part['loc'][0]}: {part['msg']}" for part in error.errors()]
        raise Unprocessable("\n".join(problems)) from error


def _list(settings: Settings, _: argparse.Namespace) -> None:
    found = _with_database(settings, _all)
    now = utc_now()
    rows = [_COLUMNS, *(_row(key, now) for key in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _revoke(settings: Settings, options: argparse.Namespace) -> None:
    def work(database: Database) -> None:
        with database.write() as connection:
            revoke_key(connection, options.key, OPERATOR, utc_now())

    _with_database(settings, work)


def _make_signing_key(_: Settings, __: argparse.Namespace) -> None:
    """Both halves on standard output; they are kept nowhere."""
    # It takes a while to import, and only this command needs it.
    from service.auth.signing import make_pair

    pair = make_pair()
    print(
        "PRIVATE KEY: CMCL_SNAPSHOT_SIGNING_KEY of the service, and a secret. "
        "PUBLIC KEY: access_public_key of the embeddings endpoint",
        file=sys.stderr,
    )
    print(f"{pair.private}{pair.public}", end="")


def _make_encryption_key(_: Settings, __: argparse.Namespace) -> None:
    """On standard output; it is kept nowhere."""
    print("CMCL_ENCRYPTION_KEY of the service, and a secret:", file=sys.stderr)
    print(new_key())


def _with_database(settings: Settings, work: Callable[[Database], T]) -> T:
    """The service need not have run before: the tables are made."""
    database = open_database(settings.database_url)
    try:
        upgrade(database)
        return work(database)
    finally:
        database.close()


def _all(database: Database) -> list[KeyRow]:
    found: list[KeyRow] = []
    with database.read() as connection:
        while True:
            after = found[-1].id if found else None
            page = keys.page(connection, None, Seek(after, limit=_PAGE))
            found += page
            if len(page) < _PAGE:
                return found


def _row(key: KeyRow, now: datetime) -> tuple[str, ...]:
    state = "valid" if key.is_valid(now) else "revoked" if key.revoked_at else "expired"
    return (
        *(key.id, key.name, key.owner, ",".join(sorted(key.scopes))),
        *(_day(key.created_at), _day(key.expires_at), _day(key.last_used_at), state),
    )


def _day(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d") if moment else "-"


def _add_admin_commands(parser: argparse.ArgumentParser) -> None:
    """rebuild; it sets `run`, which gets settings and options, and answers the exit status."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    rebuild = commands.add_parser(
        "rebuild", help="restore a lost database from object storage", description=_REBUILD
    )
    rebuild.add_argument(
        "--verify",
        choices=("full", "manifests"),
        default="full",
        help="full: every byte of every file; manifests: of files, that they are there and how long",
    )
    rebuild.add_argument(
        "--dry-run", action="store_true", help="report only; the database is not changed"
    )
    rebuild.add_argument("--json", action="store_true", help="the report as one JSON document")
    rebuild.set_defaults(run=_rebuild)


def _rebuild(settings: Settings, options: argparse.Namespace) -> int:
    # It reads files and checks signatures, for which much is imported that the other commands do
    # without.
    from service.maintenance.rebuild import run_rebuild

    return run_rebuild(settings, options)


if __name__ == "__main__":
    sys.exit(main())
