"""Time model of an update: its constants, its test on 1 to 4 ranks, and its forecast.

`python -m benchmarks.scale` measures products, passes, collectives and reading one by one, predicts
updates from them, compares with measured updates of real ranks, and applies the model to clusters
with 1 to 256 GPUs.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.command_line import OneLineParser, count, counts, log_progress
from benchmarks.report import machine
from benchmarks.scaling.constants import (
    constants_of_many,
    constants_of_one,
    usual_waiting,
    waiting,
)
from benchmarks.scaling.forecast import Forecast
from benchmarks.scaling.group import in_group
from benchmarks.scaling.model import Shape, update_terms
from benchmarks.scaling.page import markdown
from benchmarks.scaling.plots import draw_all
from benchmarks.scaling.rates import Machine, curves
from benchmarks.scaling.updates import Workload, prepare, reading_alone, time_updates, tiny
from benchmarks.training.reading import readers, write_shards
from benchmarks.training.timing import WindowTimer
from workers.train.distributed import world

_RESULTS = Path(".cmcl/benchmarks")
_DECOMPOSED = 1024
# The machine's speed varies within minutes, so every kind of update is measured at several times.
_ROUNDS = 2

Constants = dict[str, dict[float, float]]
Timing = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """Measurements of this machine with `cores` cores, by number of ranks: `own` with at most one
    process per core, `shared` with all ranks. `fixed`: of a single rank, and of one among
    several."""

    cores: int
    own: dict[int, Constants]
    shared: dict[int, Constants]
    fixed: tuple[float, float]
    shard_bytes_per_second: float
    decomposition_seconds: float

    def rates(self, ranks: int) -> Machine:
        """Return the rates for this number of ranks."""
        return Machine(
            ranks,
            self.cores,
            curves(self.own[ranks]),
            curves(self.shared[ranks]) if ranks > 1 else {},
            self.fixed[min(ranks, 2) - 1],
        )

    def own_of(self, processes: int) -> Constants:
        """Return the mean over all measurements with this number of concurrent processes."""
        return _mean(
            [own for ranks, own in self.own.items() if min(ranks, self.cores) == processes]
        )

    def forecast(self) -> Forecast:
        """Return the forecast for clusters. Reading and interpreter times are those of this
        machine."""
        reading = curves(self.own[1])["read"]
        return Forecast(
            self.fixed[1], reading, self.shard_bytes_per_second, self.decomposition_seconds
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the page, and write page, plots and document."""
    options = _parser().parse_args(arguments)
    with _workloads(options) as workloads:
        document = measured(workloads, options.ranks)
    options.out.mkdir(parents=True, exist_ok=True)
    page = markdown(document, draw_all(document, options.out))
    stem = options.out / "scale"
    stem.with_suffix(".json").write_text(json.dumps(document) + "\n")
    stem.with_suffix(".md").write_text(page)
    print(page)
    print(json.dumps(document), flush=True)
    return 0


def measured(workloads: Sequence[Workload], ranks: int) -> dict[str, Any]:
    """Return the document. Progress is logged to stderr."""
    found, timings = _found(workloads, ranks)
    updates = [
        _compared(found, workload, size, timing)
        for size, of_size in timings.items()
        if size <= ranks
        for workload, timing in zip(workloads, of_size, strict=True)
    ]
    updates.sort(key=lambda one: (one["streamed"], one["width"], one["batch"], one["ranks"]))
    return {
        "updates": updates,
        "forecast": found.forecast().document(),
        "assumed": {
            "interpreter": f"{1000 * found.fixed[1]:.2f} ms for an update, measured here",
            "reading": f"{found.shard_bytes_per_second / 2**20:.0f} MiB/s of shards for a rank, and "
            "batches from the local disk as above, measured here",
        },
        "own": {
            str(processes): found.own_of(processes)
            for processes in sorted({min(size, found.cores) for size in found.own})
        },
        "shared": {str(size): constants for size, constants in found.shared.items()},
        "machine": {**machine(), "threads of a rank": 1},
    }


def _compared(
    found: Found, workload: Workload, ranks: int, timing: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a prediction, its measurement, and the relative error of the prediction."""
    width, free = workload.width, timing["free_share"]
    shape = Shape(workload.batch, width, width, ranks, free, workload.row_bytes)
    predicted = update_terms(shape, found.rates(ranks))
    return {
        "width": width,
        "batch": workload.batch,
        "ranks": ranks,
        "streamed": bool(workload.shards),
        "predicted": predicted,
        "measured": dict(timing),
        "error": sum(predicted.values()) / timing["median"] - 1,
    }


def _found(workloads: Sequence[Workload], ranks: int) -> tuple[Found, dict[int, list[Timing]]]:
    """Return constants, and times of updates by number of ranks.

    Constants are measured before and after the updates that they predict, because the machine's
    speed varies by a fifth within minutes.
    """
    streamed = next(workload for workload in workloads if workload.shards)
    cores = len(os.sched_getaffinity(0))
    own: dict[int, Constants] = {}
    shared: dict[int, Constants] = {}
    timings: dict[int, list[Timing]] = {}
    before: dict[int, Constants] = {}
    for size in range(1, max(ranks, 2) + 1):
        processes = min(size, cores)
        first = before.pop(processes, None) or _own(streamed, processes)
        log_progress(f"updates on {size} rank(s)")
        together = in_group(partial(_together, workloads), size)
        timings[size] = together[0][1]
        if size > 1:
            shared[size] = _mean([constants for constants, _ in together])
        before[processes] = _own(streamed, processes)
        own[size] = _mean([first, before[processes]])
    log_progress("the rest")
    rates = in_group(partial(_rest, streamed), 1)[0]
    found = Found(cores, own, shared, (0.0, 0.0), *rates)
    alone, among_others = (_fixed(found, streamed, size) for size in (1, 2))
    # DDP cannot make the interpreter faster; a smaller value is noise of the subtracted terms.
    return replace(found, fixed=(alone, max(alone, among_others))), timings


def _own(streamed: Workload, processes: int) -> Constants:
    log_progress(f"products and passes, {processes} process(es)")
    return _mean(in_group(partial(_own_constants, streamed), processes))


def _together(workloads: Sequence[Workload]) -> tuple[Constants, list[Timing]]:
    """Measure updates in several rounds, waiting between them, and collectives before and after."""
    here, windows = world(), [WindowTimer(world().size) for _ in workloads]
    before, looks = _collectives(), []
    timings: list[Timing] = []
    for _ in range(_ROUNDS):
        timings.clear()
        for workload, found in zip(workloads, windows, strict=True):
            timings.append(time_updates(workload, found))
            if here.size > 1:
                looks.append(waiting())
    shared = _mean([before, _collectives()])
    return {**shared, "waiting": usual_waiting(looks)} if looks else shared, timings


def _collectives() -> Constants:
    here = world()
    return constants_of_many(here) if here.size > 1 else {}


def _fixed(found: Found, streamed: Workload, ranks: int) -> float:
    """Return the time of an update of almost no data, without collectives and waiting."""
    smallest = tiny(streamed.folder)
    prepare(smallest)
    timing = in_group(partial(time_updates, smallest), ranks)[0]
    shape = Shape(smallest.batch, smallest.width, smallest.width, ranks)
    known = update_terms(shape, found.rates(ranks))
    between = known["gather"] + known["reduce"] + known["waiting"]
    return max(0.0, float(timing["median"]) - between)


def _own_constants(streamed: Workload) -> Constants:
    return {**constants_of_one(), "read": reading_alone(streamed)}


def _rest(streamed: Workload) -> tuple[float, float]:
    """Return the reader's bytes of shards per second, and the seconds of a decomposition."""
    read = _seconds(readers(streamed.shards)["ours"])
    rows = sum(shard.rows for shard in streamed.shards)
    symmetric_II = torch.randn(_DECOMPOSED, _DECOMPOSED, dtype=torch.float64)
    symmetric_II += symmetric_II.mT.clone()
    return rows * streamed.row_bytes / read, _seconds(lambda: torch.linalg.eigh(symmetric_II))


def _seconds(task: Callable[[], object]) -> float:
    """Return the fastest of five, because other processes can only add time."""
    found = []
    for _ in range(5):
        began = time.perf_counter()
        task()
        found.append(time.perf_counter() - began)
    return min(found)


def _mean(groups: Sequence[Constants]) -> Constants:
    """Return the mean over processes or measurements. Sizes that are measured are averaged as
    well."""
    if len(groups) == 1:
        return groups[0]
    return {
        name: _mean_points([sorted(each[name].items()) for each in groups]) for name in groups[0]
    }


def _mean_points(curves_: Sequence[Sequence[tuple[float, float]]]) -> dict[float, float]:
    return {
        fmean(size for size, _ in points): fmean(seconds for _, seconds in points)
        for points in zip(*curves_, strict=True)
    }


@contextmanager
def _workloads(options: argparse.Namespace) -> Iterator[list[Workload]]:
    """Yield workloads with rows in memory for every width and batch, and streamed rows for the
    largest of both."""
    with tempfile.TemporaryDirectory(prefix="cmcl-scale-") as name:
        folder = Path(name)
        width, batch = max(options.widths), max(options.batches)
        # Smaller updates are faster, so there are more of them.
        held = [
            Workload(one, rows, options.updates * (batch // rows) * (width // one), folder)
            for one in options.widths
            for rows in options.batches
        ]
        shards = tuple(write_shards(folder, 1, batch * options.updates, width - 1))
        found = [*held, Workload(width, batch, options.updates, folder, shards)]
        for workload in found:
            log_progress(f"preparing a model of width {workload.width}")
            prepare(workload)
        yield found


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--widths", type=counts, default=(512, 1024), metavar="A,B,...")
    parser.add_argument("--batches", type=counts, default=(256, 1024), metavar="A,B,...")
    parser.add_argument(
        "--ranks", type=count, default=4, help="maximum number of ranks (default: 4)"
    )
    parser.add_argument(
        "--updates", type=count, default=32, help="updates of the largest training (default: 32)"
    )
    parser.add_argument("--out", type=Path, default=_RESULTS, help=f"(default: {_RESULTS})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
