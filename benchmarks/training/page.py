"""Markdown page of `benchmarks.training_rate`."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import listed, table

_QUESTION = (
    "How many rows per second does one rank learn, compared with a bare loop of the same products "
    "and with the published training script's loop? How fast does it read? How long does a job with "
    "warm ranks take until its first update?"
)
_LOOPS = """\
- *bare*: two heads and their scores with hand-written gradients, seven products, one exponential,
  fused AdamW; no protection, one positive per row. *autograd*: the same with autograd.
- *published*: Hugging Face's Trainer, its DataLoader, dense projections of both gradients on both
  sides, then AdamW; logging, checkpoints and progress bars off; its loss has one direction.
- *mask*: `workers.train.learn` on a model that learned two datasets before, rows in memory; *mask,
  streamed*: rows from Parquet shards through the local disk; *mask, bfloat16*: heads are multiplied
  in bfloat16, peers in float32; *improve*: the product's default, with replay of the earlier
  datasets.

All loops run on the same features, alternating in one process. An update is the selection of its
rows, forward, backward and optimizer."""
_CALM = (
    "The machine was shared. Times come from windows of at least a quarter of a second in which "
    "other processes used at most 5 % of the cores; with fewer than eight such windows, from the "
    "eight calmest, and the largest share of other processes among them is shown. *CPU*: CPU time "
    "of the process, without waiting for a core; with two threads, of both."
)
_START = (
    "Seconds from spec.json, which the control plane writes before it submits the job to Ray, to "
    "the first update; datasets of examples/stream on the whole local system. The first one "
    "includes the imports of the ranks, and does not count."
)


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    parts = [
        "# Training rate",
        "## Question\n" + _QUESTION,
        "## Machine\n" + listed(document["machine"]),
        "## Configuration\n" + listed(document["configuration"]) + f"\n\n{_LOOPS}\n\n{_CALM}",
        "## Result\n" + _goals(document["goals"]),
        *(_loops(found) for found in document["loops"]),
        _reading(document["reading"]),
    ]
    if document.get("start"):
        parts.append(_start(document["start"]))
    return "\n\n".join(parts) + "\n"


def _goals(goals: Sequence[Mapping[str, Any]]) -> str:
    rows = [[one["what"], f"{one['measured']:.2f}", str(one["goal"])] for one in goals]
    return table(("", "measured", "goal"), rows)


def _loops(found: Mapping[str, Any]) -> str:
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


def _reading(found: Mapping[str, Any]) -> str:
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


def _start(found: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(name for one in found["datasets"] for name in one))
    rows = [
        [str(number), *(f"{one[name]:.2f}" if name in one else "–" for name in names)]
        for number, one in enumerate(found["datasets"], start=1)
    ]
    words = f"{found['ranks']} rank(s). {_START}"
    return f"### Start of a warm job\n{words}\n\n{table(('dataset', *names), rows)}"


def _windows(one: Mapping[str, Any]) -> str:
    return f"{one['windows']} ({one['calm_windows']}), {one['others']:.0%}"
