"""What does the control plane cost: to accept a dataset, and to keep many of them?

`python -m benchmarks.control_plane` measures with SQLite and PostgreSQL (a temporary server). Each figure has an upper
bound from the same run.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import OneLineParser, add_out, count, log_progress, publish, table
from benchmarks.control.backlog import measure_backlog
from benchmarks.control.databases import NAMES, fresh_database
from benchmarks.control.intake import measure_intake
from benchmarks.report import machine

_INTAKE = (
    "Several clients post datasets concurrently, each with an Idempotency-Key; every response "
    "follows a durable commit. *database alone* is the limit: the same rows, written by the same "
    "function in one process without HTTP, one transaction each."
)
_BACKLOG = (
    "Median milliseconds of a reconciliation round (one job runs, the others are queued) and of a "
    "scrape of /metrics, with ten queued jobs, with the full queue, and with the queue and the "
    "history. The ratio is the last to the first."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the page, and write page and document."""
    options = _parser().parse_args(arguments)
    document = measured(options)
    publish(options, "control-plane", markdown(document), document)
    return 0


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return the document. Progress is logged to stderr."""
    document: dict[str, Any] = {"intake": {}, "backlog": {}, "machine": machine()}
    for name in NAMES:
        log_progress(f"intake on {name}")
        with tempfile.TemporaryDirectory() as folder, fresh_database(name, Path(folder)) as url:
            document["intake"][name] = measure_intake(
                url, Path(folder), options.seconds, options.clients
            )
        log_progress(f"backlog on {name}")
        with tempfile.TemporaryDirectory() as folder, fresh_database(name, Path(folder)) as url:
            document["backlog"][name] = measure_backlog(
                url, Path(folder), options.queued, options.finished
            )
    return document


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.control_plane", description=__doc__)
    parser.add_argument(
        "--seconds", type=count, default=15, help="duration of posting (default: 15)"
    )
    parser.add_argument("--clients", type=count, default=4, help="concurrent clients (default: 4)")
    parser.add_argument("--queued", type=count, default=10_000, help="queued jobs")
    parser.add_argument("--finished", type=count, default=100_000, help="finished jobs")
    add_out(parser)
    return parser


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    parts = [
        "# The control plane",
        f"Machine: {_machine_words(document['machine'])}.",
        "## Intake of datasets",
        _INTAKE,
        table(
            (
                "database",
                "accepted / s",
                "p50 ms",
                "p95 ms",
                "p99 ms",
                "database alone / s",
                "share",
            ),
            [_intake(name, found) for name, found in document["intake"].items()],
        ),
        "## Many jobs",
        _BACKLOG,
        table(
            ("database", "", "few", "queue", "queue and history", "ratio"),
            [row for name, found in document["backlog"].items() for row in _backlog(name, found)],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _intake(name: str, found: Mapping[str, Any]) -> list[str]:
    keys = ("per_second", "p50_ms", "p95_ms", "p99_ms")
    alone, share = found["database_alone_per_second"], found["share_of_database_alone"]
    return [name, *(f"{found[key]:g}" for key in keys), f"{alone:g}", f"{share:.2f}"]


def _backlog(name: str, found: Mapping[str, Any]) -> list[list[str]]:
    stages = ("few", "queue", "queue and history")
    return [
        [
            f"{name} ({found['queued']:,} queued, {found['finished']:,} finished)",
            what,
            *(f"{found[stage][what]['p50_ms']:.2f}" for stage in stages),
            f"{found[f'{what}_ratio']:.2f}",
        ]
        for what in ("round", "scrape")
    ]


def _machine_words(machine: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items())


if __name__ == "__main__":
    sys.exit(main())
