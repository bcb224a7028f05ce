"""The page of the simulation: tables, plots, and what ten times as many models and running jobs would need."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.command_line import listed, table
from benchmarks.simulation.ports import Costs

_DOTS_PER_INCH = 110
_LOOPS = ("reconciler", "worker", "monitor", "scheduler", "driver")
_LOADS = ("cores", "statements", "rows_read", "rows_written")
_FORECAST_REPLICAS = (3, 10, 30)
_TIMES = (10.0, 100.0)
_COUNTED = ("reads", "writes", "statements", "rows_read", "rows_written")
_COLUMNS = {
    "candidate_to_live_p50_s": "live p50, s",
    "candidate_to_live_p99_s": "p99, s",
    "not_live": "not live",
    "progress_age_p99_s": "progress p99, s",
    "store_requests_per_job_minute": "store / job / min",
    "ray_requests_per_job_minute": "Ray / job / min",
    "statements_per_second": "statements / s",
    "rows_read_per_second": "rows read / s",
    "rows_written_per_second": "rows written / s",
    "cores_of_busiest": "cores, busiest",
}

_INTRODUCTION = """# Simulation of the control plane

The product's work queue, leases, scheduler, monitor and reconcilers in virtual time, on SQLite, with a store and a \
launcher whose calls take 20 ms on average; one in a hundred takes ten times as long, and one in a thousand fails. \
Attempts and preparations only take time and write their results. `python -m benchmarks.simulation --growth` writes this \
page; the same seed gives the same figures, except for the measured cores."""
_FIGURES = """## Figures
Latency is from the complete candidate to live.json. Each row differs from *base* in one number; fewer models have as \
many jobs each. In *outage*, the store fails for a quarter of the time."""
_LOOPS_OF_BASE = """## Load by loop
Per second, all replicas together, in *base*. `reconciler` renews leases and resyncs; `worker` processes keys."""
_FORECAST = "Extrapolated along lines, so many models and running jobs cause, per second:"
_GROWTH = """## What ten and a hundred times as much would need
Powers of the number by which a load grows, from the smallest to the largest simulation:"""
_NOT_SIMULATED = """## What is not simulated
- Two statements at the same time: a transaction takes its time after it has ended. Waiting for locks and PostgreSQL's \
planner are not simulated; statements and rows are those of SQLite.
- The processor, except as one core of each replica, which transactions use one after another: 0.3 ms for each, 0.3 ms \
for a statement and 3 µs for a row.
- Requests of users, except for the posts of one owner; webhooks, garbage collection, and the backup, which writes an \
object for each model, dataset and version that has changed.
- The connection that listens for notifications: another replica receives an event after 5 ms.
- How a worker waits for a key. It is the one line of the loops that is not the product's."""


def write_page(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write simulation.json, simulation.md and its plots; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    found = document["simulations"]
    written = [folder / f"simulation.{kind}" for kind in ("json", "md")]
    written[0].write_text(json.dumps(document) + "\n")
    written[1].write_text(_page(found, document["machine"]))
    return [*written, *_plots(found, folder)]


def _page(found: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    base = found["base"]
    rows = [[name, *(each[column] for column in _COLUMNS)] for name, each in found.items()]
    loops = [
        [loop, *(base["by_loop"].get(loop, {}).get(load, 0) for load in _LOADS)] for loop in _LOOPS
    ]
    parts = [
        _INTRODUCTION,
        listed(machine),
        _size(base),
        _FIGURES,
        table(["", *_COLUMNS.values()], rows),
        _busiest(base),
        _fairness(base),
        "![Load by number of models](simulation-models.png)",
        "![Load by number of replicas](simulation-replicas.png)",
        _LOOPS_OF_BASE,
        table(["", *_LOADS], loops),
        *_forecast(found),
        _NOT_SIMULATED,
    ]
    return "\n\n".join(parts) + "\n"


def _size(base: Mapping[str, Any]) -> str:
    return (
        f"{base['models']:,} models of {base['owners']['number']} owners, {base['running']:,} running jobs, "
        f"{base['queued']:,} in all, {base['replicas']} replicas, {base['seconds']:g} s after the replicas had started "
        "and shared the models. An attempt takes 300 s on average and reports every 3 s."
    )


def _busiest(base: Mapping[str, Any]) -> str:
    return (
        f"Of the busiest replica, {base['cores_of_busiest']:g} cores were simulated, and "
        f"{base['measured_cores_of_busiest']:g} measured; in samples every 5 s, at most {base['queue_depth_most']:,} "
        f"keys waited for a worker, and {base['models_without_owner_most']:,} models had no replica."
    )


def _fairness(base: Mapping[str, Any]) -> str:
    owners, new = base["owners"], base["newcomer"]
    return (
        f"The first owner has half of all models. At the end an owner has {owners['running_least']} to "
        f"{owners['running_most']} running jobs. An owner without jobs posts {new['posted']} datasets to as many models: "
        f"{new['begun']} attempts begin, after {new['wait_p50_s']} s in the median and {new['wait_max_s']} s at most, "
        "preparation included."
    )


def exponent(found: Mapping[str, Any], what: str, loop: str, load: str) -> float:
    """By which power of `what` a load of a loop grows, from the smallest to the largest simulation; 0 without load."""
    series = _series(found, what)
    ends = [
        (each[what], each["by_loop"].get(loop, {}).get(load, 0.0))
        for each in (series[0], series[-1])
    ]
    (small, before), (large, after) = ends
    if before <= 0 or after <= 0:
        return 0.0
    return math.log(after / before) / math.log(large / small)


def predicted(found: Mapping[str, Any], times: float, replicas: int, loop: str, load: str) -> float:
    """The load of a loop with so many times as many models and running jobs.

    A load is a constant and a part in proportion to each number: it is extrapolated along the line through the smallest
    and the largest simulation.
    """
    base = found["base"]
    value = float(base["by_loop"].get(loop, {}).get(load, 0.0))
    targets = {name: times * base[name] for name in ("models", "running")}
    for what, number in {**targets, "replicas": replicas}.items():
        series = _series(found, what)
        ends = [(each[what], each["by_loop"].get(loop, {}).get(load, 0.0)) for each in series]
        (small, before), (large, after) = ends[0], ends[-1]
        # Noise of a load that does not depend on it must not let the prediction shrink.
        slope = max(0.0, (after - before) / (large - small))
        here = after + slope * (base[what] - large)
        if here > 0:
            value *= (after + slope * (number - large)) / here
    return value


def _forecast(found: Mapping[str, Any]) -> list[str]:
    base = found["base"]
    sizes = ("models", "running", "replicas")
    growth = [
        [loop, load, *(f"{exponent(found, what, loop, load):.2f}" for what in sizes)]
        for loop in _LOOPS[:3]
        for load in ("cores", "rows_read", "rows_written")
    ]
    rows = []
    for times, replicas in product(_TIMES, _FORECAST_REPLICAS):
        loads = {
            loop: Counter(
                {load: round(predicted(found, times, replicas, loop, load)) for load in _COUNTED}
            )
            for loop in _LOOPS
        }
        total = sum(loads.values(), Counter[str]())
        cores = {loop: Costs().processor(each) / replicas for loop, each in loads.items()}
        models, running = (round(times * base[name]) for name in ("models", "running"))
        shares = [f"{cores[loop]:.2f}" for loop in _LOOPS[:3]]
        sums = [f"{total[load]:,}" for load in _LOADS[1:]]
        size = [f"{models:,}", f"{running:,}", replicas]
        rows.append([*size, f"{sum(cores.values()):.2f}", *shares, *sums])
    head = ["models", "running", "replicas", "cores of each", "reconciler", "worker", "monitor"]
    head += ["statements / s", "rows read / s", "rows written / s"]
    return [
        _GROWTH,
        table(["loop", "load per second", *sizes], growth),
        _FORECAST,
        table(head, rows),
    ]


def _series(found: Mapping[str, Any], what: str) -> list[Mapping[str, Any]]:
    """The simulations that differ in one number, in its order."""
    of_series = [each for name, each in found.items() if name.startswith(f"{what} ")]
    return sorted([*of_series, found["base"]], key=lambda each: float(each[what]))


def _plots(found: Mapping[str, Any], folder: Path) -> list[Path]:
    return [
        _plot(found, what, folder / f"simulation-{what}.png") for what in ("models", "replicas")
    ]


def _plot(found: Mapping[str, Any], what: str, path: Path) -> Path:
    series = _series(found, what)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    for loop in _LOOPS[:3]:
        left.plot(
            [each[what] for each in series],
            [each["by_loop"].get(loop, {}).get("cores", 0.0) for each in series],
            marker="o",
            label=loop,
        )
    left.set_title("Cores, all replicas together")
    left.legend()
    for load in _LOADS[1:]:
        values = [each[f"{load}_per_second"] for each in series]
        right.plot([each[what] for each in series], values, marker="o", label=load)
    right.set_title("Database, per second")
    right.legend()
    for axis in (left, right):
        _logarithmic(axis, what)
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    plt.close(figure)
    return path


def _logarithmic(axis: Axes, what: str) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel(what)
    axis.grid(visible=True, which="both", alpha=0.3)
