"""Markdown page of `benchmarks.serving_swaps`, with its plot: latency over time with swaps marked, memory below it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.command_line import listed, table
from benchmarks.endpoint.load import Answers
from benchmarks.swaps.mover import Move

matplotlib.use("agg")

_QUESTION = (
    "The live version is swapped repeatedly under load. Does a request fail or mix two versions? "
    "How much slower are requests during swaps? How soon do all replicas serve the new version? "
    "Does memory grow?"
)
_HOW = """\
- A swap is timed by the clients' responses: from just before `live.json` is written until the last
  response by another version, among requests sent after the swap. There is no other load. The
  pointer is then announced, as the control plane does (`POST /internal/announcements`).
- Versions repeat in a cycle longer than a replica's cache, so each is read from the store, verified
  and warmed up; every fifth swap is a rollback to the previous version, which is in memory.
- Every response is compared with the embeddings of the version that it names. Each version has
  different heads, so a response that mixes two versions would be detected.
- *steady*: requests before, between and after rounds of swaps. *swapping*: all requests of the
  rounds. They alternate because the machine's speed varies by a fifth within minutes: with 20 s
  before and after, the same code gave 1.12, 1.40 and 1.43. *in a swap*: requests in progress while
  replicas had different versions. Clients send without a pause and keep both cores busy, so loading
  a version takes time from requests."""

_DOTS_PER_INCH = 110
_BIN_SECONDS = 0.5
_OK = 200


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    parts = [
        "# Swaps under load",
        "## Question\n" + _QUESTION,
        "## Machine\n" + listed(document["machine"]),
        "## Configuration\n" + listed(document["configuration"]) + "\n\n" + _HOW,
        "## Result\n" + _goals(document["goals"]),
        "### Latency, ms\n" + _latency(document["latency"]),
        "### Swaps, ms until all replicas served the new version\n"
        + _swaps(document["swap_times"]),
        "### Memory\n" + _memory(document["memory"]),
        f"![Latency over time]({document['picture']})",
    ]
    return "\n\n".join(parts) + "\n"


def _goals(goals: Sequence[Mapping[str, Any]]) -> str:
    rows = [[one["what"], _number(one["measured"]), str(one["goal"])] for one in goals]
    return table(("", "measured", "goal"), rows)


def _latency(found: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [name, *(_number(one[key]) for key in ("answers", "p50", "p95", "p99"))]
        for name, one in found.items()
        if one
    ]
    return table(("", "answers", "p50", "p95", "p99"), rows)


def _swaps(found: Mapping[str, Mapping[str, float]]) -> str:
    keys = ("p50", "p95", "most", "never")
    rows = [
        [name, *(_number(one[key]) if key in one else "–" for key in keys)]
        for name, one in found.items()
    ]
    return table(("", *keys), rows)


def _memory(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for number, one in enumerate(found, start=1):
        slope = "–"
        if one["slope"] is not None:
            slope = f"{one['slope']['value']:+.2f} ± {one['slope']['half_width']:.2f}"
        rows.append(
            [str(number), *(f"{one[key]:.0f}" for key in ("at_first", "at_50", "at_end")), slope]
        )
    head = (
        "replica",
        "MiB before",
        "after 50 swaps",
        "at the end",
        "MiB per 100 swaps after the 50th",
    )
    return table(head, rows) + "\n\nSlope with its 95 % interval, from means of ten blocks."


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.2f}"


def draw(
    answers: Answers,
    moves: Sequence[Move],
    memory: tuple[Sequence[float], Mapping[int, Sequence[float]]],
    path: Path,
) -> None:
    """Draw the plot. The time axis starts at the first request."""
    begin = float(answers["sent"].min())
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(13, 7), layout="constrained", sharex=True, height_ratios=(3, 1)
    )
    _draw_latency(above, answers, begin)
    _mark(above, moves, begin)
    above.set_yscale("log")
    above.set_ylabel("latency (ms)")
    above.legend(loc="upper right")
    times, by_process = memory
    for number, mebibytes in enumerate(by_process.values(), start=1):
        below.plot(np.array(times) - begin, mebibytes, label=f"replica {number}")
    below.set_ylabel("memory (MiB)")
    below.set_xlabel("seconds")
    below.legend(loc="lower right")
    figure.suptitle(
        "Every request while versions swap; a line for each move of the pointer (dashed: rollback)"
    )
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    plt.close(figure)


def _draw_latency(axis: Axes, answers: Answers, begin: float) -> None:
    good, bad = answers[answers["status"] == _OK], answers[answers["status"] != _OK]
    at_N, ms_N = good["sent"] - begin, 1000 * good["seconds"]
    axis.plot(at_N, ms_N, ".", markersize=1, alpha=0.25, color="C0", rasterized=True)
    bins_N = (at_N / _BIN_SECONDS).astype(int)
    for share, colour in ((50, "black"), (99, "C3")):
        curve = [np.percentile(ms_N[bins_N == each], share) for each in np.unique(bins_N)]
        where = (np.unique(bins_N) + 0.5) * _BIN_SECONDS
        label = f"p{share} of each {_BIN_SECONDS:g} s"
        axis.plot(where, curve, color=colour, linewidth=1.3, label=label)
    if len(bad):
        axis.plot(bad["sent"] - begin, 1000 * bad["seconds"], "x", color="red", label="failed")


def _mark(axis: Axes, moves: Sequence[Move], begin: float) -> None:
    for move in moves:
        line = "--" if move.is_rollback else "-"
        axis.axvline(move.at - begin, color="C2", linewidth=0.6, alpha=0.7, linestyle=line)
