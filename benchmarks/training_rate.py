"""How fast does one rank train, compared with a bare loop and with the published script's?

`python -m benchmarks.training_rate` measures loops and reading. Its peers
need additional packages, which `make bench-training` installs.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import product
from typing import Any

from benchmarks.command_line import (
    OneLineParser,
    add_out,
    count,
    counts,
    listed,
    log_progress,
    publish,
    table,
)
from benchmarks.report import machine
from benchmarks.training.comparison import Comparison

# Goals for the ratio of our rate to each peer's, by batch size.
_GOALS: dict[str, dict[int, float]] = {"bare": {1024: 0.7}, "published": {64: 10.0}}
# Bytes of float16, both sides.
_ROW_BYTES = 4

_QUESTION = (
    "How many rows per second does one rank learn, compared with a bare loop of the same products "
    "and with the published training script's loop? How fast does it read?"
)
_LOOPS = """\
- *bare*: two heads and their scores with hand-written gradients, seven products, one exponential,
  fused AdamW; no protection, one positive per row. *autograd*: the same with autograd.
- *published*: Hugging Face's Trainer, its DataLoader, dense projections of both gradients on both
  sides, then AdamW; logging, checkpoints and progress bars off; its loss has one direction.
- *preserve*: `workers.train.learn` on a model that learned two datasets before, rows in memory;
  *preserve, streamed*: rows from Parquet shards through the local disk; *preserve, bfloat16*: heads
  are multiplied in bfloat16, peers in float32.

All loops run on the same features, alternating in one process. An update is the selection of its
rows, forward, backward and optimizer."""
_CALM = (
    "The machine was shared. Times come from windows of at least a quarter of a second in which "
    "other processes used at most 5 % of the cores; with fewer than eight such windows, from the "
    "eight calmest, and the largest share of other processes among them is shown. *CPU*: CPU time "
    "of the process, without waiting for a core; with two threads, of both."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the page, and write page and document."""
    options = _parser().parse_args(arguments)
    document = measured(options)
    publish(options, "training-rate", markdown(document), document)
    return 0


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return the document. Progress is logged to stderr."""
    comparison = Comparison(options.width, options.rows, options.rounds)
    loops = [
        _loops(comparison, batch, threads)
        for threads in options.threads
        for batch in options.batches
    ]
    log_progress("reading")
    reading = _reading(comparison, options.shards)
    return {
        "loops": loops,
        "reading": reading,
        "goals": _goals(loops, reading),
        "configuration": {
            "width": f"E = I = {options.width}",
            "rows": options.rows,
            "rounds": f"{options.rounds}, the first unit of work of each being warm-up",
            "seed": 0,
        },
        "machine": {
            **machine(),
            **{name: version(name) for name in ("transformers", "accelerate", "pyarrow")},
        },
    }


def _loops(comparison: Comparison, batch: int, threads: int) -> dict[str, Any]:
    log_progress(f"batch {batch}, {threads} thread(s)")
    found = comparison.loops(batch, threads)
    return {
        "batch": batch,
        "threads": threads,
        "loops": {name: timing.document() for name, timing in found.items()},
    }


def _reading(comparison: Comparison, shards: int) -> dict[str, Any]:
    found, rows = comparison.reading(shards), shards * comparison.rows
    return {
        "shards": shards,
        "rows": rows,
        "bytes": rows * comparison.width * _ROW_BYTES,
        "readers": {name: timing.document() for name, timing in found.items()},
    }


def _goals(loops: Sequence[Mapping[str, Any]], reading: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the goals with the measured values."""
    goals = []
    for found in loops:
        seconds = {name: one["mean"] for name, one in found["loops"].items()}
        batch, where = found["batch"], f"batch {found['batch']}, {found['threads']} thread(s)"
        for loop, (peer, goal) in product(("preserve", "preserve, bfloat16"), _GOALS.items()):
            # Goals apply only at the peer's precision.
            least = goal.get(batch, "–") if loop == "preserve" else "–"
            ratio = seconds[peer] / seconds[loop]
            goals.append({"what": f"{loop} / {peer}, {where}", "measured": ratio, "goal": least})
    readers = {name: one["median"] for name, one in reading["readers"].items()}
    for files in ("users' files", "own shards"):
        share = readers[f"pyarrow, {files}"] / readers[f"ours, {files}"]
        goals.append({"what": f"reading / pyarrow, {files}", "measured": share, "goal": 0.8})
    return goals


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.training_rate", description=__doc__)
    parser.add_argument("--width", type=count, default=1024, help="E = I (default: 1024)")
    parser.add_argument("--batches", type=counts, default=(64, 1024), metavar="A,B,...")
    parser.add_argument("--threads", type=counts, default=(1, 2), metavar="A,B,...")
    parser.add_argument(
        "--rows", type=count, default=16384, help="rows of a dataset, and of a shard"
    )
    parser.add_argument("--shards", type=count, default=8, help="shards to read (default: 8)")
    parser.add_argument("--rounds", type=count, default=5, help="rounds, alternating between loops")
    add_out(parser)
    return parser


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    parts = [
        "# Training rate",
        "## Question\n" + _QUESTION,
        "## Machine\n" + listed(document["machine"]),
        "## Configuration\n" + listed(document["configuration"]) + f"\n\n{_LOOPS}\n\n{_CALM}",
        "## Result\n" + _goals_table(document["goals"]),
        *(_loops_table(found) for found in document["loops"]),
        _reading_table(document["reading"]),
    ]
    return "\n\n".join(parts) + "\n"


def _goals_table(goals: Sequence[Mapping[str, Any]]) -> str:
    rows = [[one["what"], f"{one['measured']:.2f}", str(one["goal"])] for one in goals]
    return table(("", "measured", "goal"), rows)


def _loops_table(found: Mapping[str, Any]) -> str:
    bare = found["loops"]["bare"]
    rows = [
        [
            name,
            *(f"{1000 * one[key]:.2f}" for key in ("mean", "median", "p95", "cpu")),
            f"{found['batch'] / one['mean']:,.0f}",
            f"{bare['mean'] / one['mean']:.2f}",
            f"{bare['cpu'] / one['cpu']:.2f}",
            _windows(one),
        ]
        for name, one in found["loops"].items()
    ]
    times = ("mean ms", "median", "p95", "CPU ms", "rows / s", "rate / bare", "by CPU time")
    head = ("loop", *times, "windows (calm), others")
    title = f"Batch {found['batch']}, {found['threads']} thread(s)"
    return f"### {title}\n{table(head, rows)}"


def _reading_table(found: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            *(f"{one[key]:.2f}" for key in ("median", "p95", "cpu")),
            f"{found['bytes'] / one['median'] / 2**20:.0f}",
            _windows(one),
        ]
        for name, one in found["readers"].items()
    ]
    head = ("reader", "median s", "p95", "CPU s", "MiB / s", "windows (calm), others")
    words = (
        f"{found['rows']:,} rows, {found['bytes'] / 2**20:.0f} MiB in {found['shards']} files, from "
        "the page cache. Our reader verifies a digest (BLAKE3) of every file, pyarrow does not. "
        "Users' files are tables as pyarrow writes them by default, without compression: they store "
        "validity for each number, while our own declare that none is missing."
    )
    return f"### Reading\n{words}\n\n{table(head, rows)}"


def _windows(one: Mapping[str, Any]) -> str:
    return f"{one['windows']} ({one['calm_windows']}), {one['others']:.0%}"


if __name__ == "__main__":
    sys.exit(main())
