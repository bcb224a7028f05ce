"""How does the control plane behave with many models, jobs and replicas, and which cost grows first?

`python -m benchmarks.simulation` runs the product's work queue, leases, scheduler, monitor and reconcilers in virtual
time, with a store and a launcher that take time and fail now and then. The figures are the same for the same seed, except
`measured_cores_of_busiest` and `wall_s`. `--growth` varies models, running jobs, queued jobs and replicas one by one.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.command_line import OneLineParser, count, log_progress
from benchmarks.report import machine
from benchmarks.simulation.cluster import Durations
from benchmarks.simulation.page import write_page
from benchmarks.simulation.ports import Costs
from benchmarks.simulation.rows import Load
from benchmarks.simulation.simulation import Setup, simulate

_RESULTS = Path(".cmcl/benchmarks")
# What is varied, and the shares of its value.
_SHARES = {"models": (0.1, 0.3), "running": (0.1,), "queued": (0.3,)}
_REPLICAS = (1, 10)
_TINY = Setup(
    load=Load(models=60, running=12, queued=300, owners=3),
    seconds=60.0,
    warm_up=15.0,
    posted=3,
    durations=Durations(attempt=20.0),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate. The last line is one JSON document."""
    options = _parser().parse_args(arguments)
    # Failed calls are part of the simulation.
    logging.getLogger("service").setLevel(logging.ERROR)
    base = _TINY if options.tiny else _setup(options)
    setups = {"base": base}
    if options.growth:
        setups |= _growth(base)
        setups["outage"] = replace(base, costs=replace(base.costs, outage=_outage(base)))
    found: dict[str, Any] = {}
    for name, setup in setups.items():
        log_progress(name)
        found[name] = simulate(setup)
        log_progress(json.dumps(found[name]))
    if options.growth:
        document = {"simulations": found, "machine": machine()}
        for path in write_page(document, options.out):
            log_progress(f"wrote {path}")
    if not options.json:
        print(json.dumps(found["base"], indent=2))
    print(json.dumps(found if options.growth else found["base"]), flush=True)
    return 0


def _setup(options: argparse.Namespace) -> Setup:
    return Setup(
        load=Load(options.models, options.running, options.queued, options.owners),
        replicas=options.replicas,
        seconds=float(options.seconds),
        seed=options.seed,
        costs=Costs(
            call=options.call_ms / 1000,
            failing_share=options.failing,
            slow_share=options.slow,
        ),
        durations=Durations(attempt=float(options.attempt_seconds)),
    )


def _growth(base: Setup) -> dict[str, Setup]:
    """The same with fewer of one thing, and with other numbers of replicas."""
    found: dict[str, Setup] = {}
    for what, shares in _SHARES.items():
        for share in shares:
            number = max(1, round(share * getattr(base.load, what)))
            load = replace(base.load, **{what: number})
            if what == "models":
                # With as many jobs for each model.
                jobs = max(number, round(share * base.load.queued))
                load = replace(load, queued=jobs, running=min(number, load.running))
            found[f"{what} {number}"] = replace(base, load=load)
    for number in _REPLICAS:
        if number != base.replicas:
            found[f"replicas {number}"] = replace(base, replicas=number)
    return found


def _outage(base: Setup) -> tuple[float, float]:
    """A quarter of the measurement, in its middle."""
    began = base.warm_up + 0.25 * base.seconds
    return (began, began + 0.25 * base.seconds)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to below 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("--models", type=count, default=10_000, help="(default: 10000)")
    parser.add_argument("--running", type=count, default=1_000, help="jobs (default: 1000)")
    parser.add_argument("--queued", type=count, default=100_000, help="jobs (default: 100000)")
    parser.add_argument("--owners", type=count, default=10, help="(default: 10)")
    parser.add_argument("--replicas", type=count, default=3, help="(default: 3)")
    parser.add_argument(
        "--seconds", type=count, default=60, help="of virtual time, measured (default: 60)"
    )
    parser.add_argument(
        "--attempt-seconds", type=count, default=300, help="mean of an attempt (default: 300)"
    )
    parser.add_argument(
        "--call-ms", type=count, default=20, help="a call of store or launcher (default: 20)"
    )
    parser.add_argument(
        "--slow", type=_share, default=0.01, help="share of calls that take ten times as long"
    )
    parser.add_argument("--failing", type=_share, default=0.001, help="share of calls that fail")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--growth", action="store_true", help="vary each number; write the page")
    parser.add_argument("--out", type=Path, default=_RESULTS, help=f"of the page ({_RESULTS})")
    parser.add_argument("--tiny", action="store_true", help="60 models, for a first look")
    parser.add_argument("--json", action="store_true", help="print the last line only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
