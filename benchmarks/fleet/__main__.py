"""How well does one replica of the control plane watch a thousand running jobs, and what does that cost?

`python -m benchmarks.fleet` fills a database with running jobs of as many models, has their attempts show progress and
end, and measures the work queue and, beside it in the same run, the rounds that it replaced: from a complete candidate
to live.json, the age of the progress that is stored, requests to store and launcher, and processor time. Store and
launcher take 20 ms a request.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import OneLineParser, count, log_progress
from benchmarks.fleet.measure import Control, Fleet, measure

_TINY = Fleet(
    running=20, call_seconds=0.001, heartbeat=1.0, seconds=20.0, ends_per_second=0.5, warm_up=8.0
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both, and print the figures. The last line is one JSON document."""
    options = _parser().parse_args(arguments)
    fleet = (
        _TINY if options.tiny else Fleet(running=options.running, seconds=float(options.seconds))
    )
    found: dict[str, dict[str, Any]] = {}
    controls: tuple[Control, ...] = ("queue",) if options.without_before else ("queue", "rounds")
    for control in controls:
        log_progress(f"{fleet.running} running jobs, {control}")
        with tempfile.TemporaryDirectory() as folder:
            found[control] = measure(fleet, Path(folder), control)
    if not options.json:
        print(_table(found))
    print(json.dumps({**found["queue"], "before": found.get("rounds")}), flush=True)
    return 0


def _table(found: dict[str, dict[str, Any]]) -> str:
    rows = [" ".join([f"{'':32}", *(f"{control:>10}" for control in found)])]
    for name in found["queue"]:
        values = [f"{figures[name]!s:>10}" for figures in found.values()]
        rows.append(" ".join([f"{name:32}", *values]))
    return "\n".join(rows)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--running", type=count, default=1000, help="running jobs (default: 1000)")
    parser.add_argument(
        "--seconds", type=count, default=90, help="duration of each measurement (default: 90)"
    )
    parser.add_argument(
        "--without-before",
        action="store_true",
        help="measure the work queue only, in half the time",
    )
    parser.add_argument("--tiny", action="store_true", help="20 jobs for 20 s, for a first look")
    parser.add_argument("--json", action="store_true", help="print the last line only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
