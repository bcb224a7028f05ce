"""Plot of a swap run: latency over time with swaps marked, and memory below it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.endpoint.load import Answers
from benchmarks.swaps.mover import Move

_DOTS_PER_INCH = 110
_BIN_SECONDS = 0.5
_OK = 200


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
