"""`python -m service admin ...`: what an operator does while no service runs."""

import argparse

from service.settings import Settings

_REBUILD = """Fill an empty database from what lies in object storage: CMCL_DATABASE_URL from CMCL_STORE_URI.
Stop every service first. Exit status 3: something is damaged, and everything else was restored."""


def add_commands(parser: argparse.ArgumentParser) -> None:
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
        "--dry-run", action="store_true", help="look and report; the database is not touched"
    )
    rebuild.add_argument(
        "--repair",
        action="store_true",
        help="put damaged versions in place again where a sound copy lies; without it, nothing is "
        "written to object storage",
    )
    rebuild.add_argument("--json", action="store_true", help="the report as one JSON document")
    rebuild.set_defaults(run=_rebuild)


def _rebuild(settings: Settings, options: argparse.Namespace) -> int:
    # It reads files and checks signatures, for which much is imported that the other commands do
    # without.
    from service.maintenance.rebuild.run import carry_out

    return carry_out(settings, options)
