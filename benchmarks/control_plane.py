"""What does the control plane cost: to accept a dataset, to keep many of them, to make a version
live?

`python -m benchmarks.control_plane` measures with SQLite and PostgreSQL (a temporary server), and
runs the whole local system on examples/stream. Each figure has an upper bound from the same run.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.arguments import OneLineParser, count
from benchmarks.control.backlog import measure_backlog
from benchmarks.control.databases import NAMES, fresh_database
from benchmarks.control.intake import measure_intake
from benchmarks.control.live import measure_live
from benchmarks.control.page import markdown
from benchmarks.progress import log_progress
from benchmarks.report import machine

_RESULTS = Path(".cmcl/benchmarks")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the page, and write page and document."""
    options = _parser().parse_args(arguments)
    document = measured(options)
    page = markdown(document)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / "control-plane"
    stem.with_suffix(".json").write_text(json.dumps(document) + "\n")
    stem.with_suffix(".md").write_text(page)
    print(page)
    print(json.dumps(document), flush=True)
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
    if not options.without_ray:
        log_progress("from POST to live on the local system")
        with tempfile.TemporaryDirectory() as folder:
            document["live"] = measure_live(options.stream, Path(folder))
    return document


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.control_plane", description=__doc__)
    parser.add_argument(
        "--seconds", type=count, default=15, help="duration of posting (default: 15)"
    )
    parser.add_argument("--clients", type=count, default=4, help="concurrent clients (default: 4)")
    parser.add_argument("--queued", type=count, default=10_000, help="queued jobs")
    parser.add_argument("--finished", type=count, default=100_000, help="finished jobs")
    parser.add_argument("--stream", type=Path, default=Path("examples/stream"))
    parser.add_argument("--without-ray", action="store_true", help="skip POST to live")
    parser.add_argument("--out", type=Path, default=_RESULTS, help=f"(default: {_RESULTS})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
