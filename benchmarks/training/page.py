"""The page of `benchmarks.training_rate`, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import listed, table

_QUESTION = (
    "How many rows a second does one rank learn, beside a bare loop with the same products and beside "
    "the published training script's loop? How quickly does it read? How long does a job that finds "
    "its ranks warm take to its first update?"
)
_LOOPS = """\
- *bare*: two heads and their scores by hand, seven products, one exponential, fused AdamW; nothing
  protected, one positive a row. *autograd*: the same without the handwork.
- *published*: Hugging Face's Trainer, its DataLoader, dense projections of both gradients on both
  sides, then AdamW; logging, saving and bars switched off; its loss has one direction.
- *mask*: `workers.train.learn` on a model that learned two datasets before, rows in memory; *mask,
  streamed*: rows from Parquet shards through the local disk; *mask, bfloat16*: heads are multiplied in
  bfloat16, beside peers in float32; *improve*: the product's default, with replay of the earlier
  datasets.

All on the same features, by turns in one process. An update is forward, backward and optimizer, with
the choice of its rows."""
_CALM = (
    "Others used the machine, too. Times are of windows of a quarter of a second and more in which "
    "others used at most 5 % of the cores; where fewer than eight were so calm, of the eight calmest, "
    "and the largest share of others among them is told. *CPU*: what the process computed, without its "
    "waiting for a core; with two threads, of both."
)
_START = (
    "Seconds from spec.json, which the control plane writes before it tells Ray, to the first update; "
    "datasets of examples/stream on the whole local system. The first one finds ranks that have not "
    "imported yet, and does not count."
)


def markdown(document: Mapping[str, Any]) -> str:
    """Question, machine, configuration, result."""
    parts = [
        "# The rate of training",
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
        "the page cache. Ours checks a digest (BLAKE3) of every file, which pyarrow does not. Users' files are "
        "as pyarrow writes a table by default, without compression; they note for each number whether it "
        "is there, and our own say once that none is missing."
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
