"""How fast does one rank train, compared with a bare loop and with the published script's?

`python -m benchmarks.training_rate` measures loops, reading and the start of a warm job. Its peers
need additional packages, which `make bench-training` installs.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.arguments import OneLineParser, count, counts
from benchmarks.progress import log_progress
from benchmarks.report import machine
from benchmarks.training.comparison import Comparison
from benchmarks.training.page import markdown
from benchmarks.training.start import measure_start

_RESULTS = Path(".cmcl/benchmarks")
_STEM = "training-rate"
# Goals for the ratio of our rate to each peer's, by batch size.
_GOALS: dict[str, dict[int, float]] = {"bare": {1024: 0.7}, "published": {64: 10.0}}
# Bytes of float16, both sides.
_ROW_BYTES = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the page, and write page and document."""
    options = _parser().parse_args(arguments)
    document = measured(options)
    page = markdown(document)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / _STEM
    stem.with_suffix(".json").write_text(json.dumps(document) + "\n")
    stem.with_suffix(".md").write_text(page)
    print(page)
    print(json.dumps(document), flush=True)
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
    start = None
    if not options.without_ray:
        log_progress("the start of warm jobs")
        with tempfile.TemporaryDirectory(prefix="cmcl-bench-") as folder:
            start = measure_start(options.stream, Path(folder), options.ranks)
    return {
        "loops": loops,
        "reading": reading,
        "start": start,
        "goals": _goals(loops, reading, start),
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


def _goals(
    loops: Sequence[Mapping[str, Any]], reading: Mapping[str, Any], start: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Return the goals with the measured values."""
    goals = []
    for found in loops:
        seconds = {name: one["mean"] for name, one in found["loops"].items()}
        batch, where = found["batch"], f"batch {found['batch']}, {found['threads']} thread(s)"
        for loop, (peer, goal) in product(("mask", "mask, bfloat16"), _GOALS.items()):
            # Goals apply only at the peer's precision.
            least = goal.get(batch, "–") if loop == "mask" else "–"
            ratio = seconds[peer] / seconds[loop]
            goals.append({"what": f"{loop} / {peer}, {where}", "measured": ratio, "goal": least})
    readers = {name: one["median"] for name, one in reading["readers"].items()}
    for files in ("users' files", "own shards"):
        share = readers[f"pyarrow, {files}"] / readers[f"ours, {files}"]
        goals.append({"what": f"reading / pyarrow, {files}", "measured": share, "goal": 0.8})
    if start is not None:
        seconds = start["median_seconds"]
        goals.append({"what": "warm start, s", "measured": seconds, "goal": "under 3"})
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
    parser.add_argument("--ranks", type=count, default=2, help="that stay warm (default: 2)")
    parser.add_argument("--stream", type=Path, default=Path("examples/stream"))
    parser.add_argument("--without-ray", action="store_true", help="skip the start of jobs")
    parser.add_argument("--out", type=Path, default=_RESULTS, help=f"(default: {_RESULTS})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
