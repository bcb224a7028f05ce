"""Plots: prediction and measurement, updates and datasets on clusters, and the largest terms."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.scaling.forecast import BATCH, BATCHES, PAIRS, RANKS, WIDTH, WIDTHS, of_width
from benchmarks.scaling.model import TERMS

_COLOURS = dict(
    zip(
        TERMS,
        ("#2f6fb0", "#8fb8de", "#e08b2c", "#c0504d", "#8064a2", "#8c8c8c", "#5b9a5b"),
        strict=True,
    )
)
_DOTS_PER_INCH = 110
_HOUR, _DAY = 3600.0, 86400.0


def draw_all(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the four plots."""
    drawn = {
        "scale-measured": _measured(document["updates"]),
        "scale-updates": _updates(document["forecast"]["updates"]),
        "scale-datasets": _datasets(document["forecast"]["datasets"]),
        "scale-largest-term": _largest(document["forecast"]["takes over"]),
    }
    return [_save(figure, folder / f"{name}.png") for name, figure in drawn.items()]


def _measured(updates: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot stacked terms, and the measurement as a line across."""
    figure, axis = plt.subplots(figsize=(12, 4.8), layout="constrained")
    places = np.arange(len(updates))
    _stack(axis, places, [one["predicted"] for one in updates], 1000.0, 0.7)
    for place, one in enumerate(updates):
        measured = 1000 * one["measured"]["median"]
        axis.hlines(measured, place - 0.45, place + 0.45, color="black", linewidth=2)
        axis.text(place, measured, f"{one['error']:+.0%}", ha="center", va="bottom", fontsize=8)
    labels = [f"{one['ranks']}" for one in updates]
    axis.set_xticks(places, labels)
    _groups(axis, updates)
    axis.set_ylabel("ms for one update")
    axis.set_title("Predicted terms (bars) and measurement (lines, with the prediction's error)")
    axis.legend(loc="upper left")
    return figure


def _groups(axis: Axes, updates: Sequence[Mapping[str, Any]]) -> None:
    """Label groups of bars with their common settings."""
    names = [_setting(one) for one in updates]
    for name in dict.fromkeys(names):
        own = [place for place, one in enumerate(names) if one == name]
        axis.text(
            (own[0] + own[-1]) / 2,
            -0.1,
            name,
            ha="center",
            va="top",
            transform=axis.get_xaxis_transform(),
        )
        axis.axvline(own[-1] + 0.5, color="#cccccc", linewidth=0.8)


def _setting(one: Mapping[str, Any]) -> str:
    streamed = "\nstreamed" if one["streamed"] else ""
    return f"ranks at width {one['width']},\nbatch {one['batch']}{streamed}"


def _updates(updates: Sequence[dict[str, Any]]) -> Figure:
    """Plot shares of an update. The time is written above each bar, because it falls by two orders
    of magnitude."""
    figure, axes = plt.subplots(
        1, len(WIDTHS), figsize=(16, 4.6), layout="constrained", sharey=True
    )
    for axis, width in zip(axes, WIDTHS, strict=True):
        found = of_width(updates, width, BATCH)
        totals = [sum(one[term] for term in TERMS) for one in found]
        shares = [
            {term: one[term] / total for term in TERMS}
            for one, total in zip(found, totals, strict=True)
        ]
        _stack(axis, np.arange(len(found)), shares, 100.0, 0.85)
        for place, total in enumerate(totals):
            axis.text(place, 101, f"{1000 * total:.3g}", ha="center", va="bottom", fontsize=8)
        axis.set_xticks(range(len(RANKS)), [str(ranks) for ranks in RANKS])
        axis.set_xlabel("GPUs")
        axis.set_title(f"width {width} (ms above)", pad=14)
        axis.set_ylim(0, 100)
    axes[0].set_ylabel("% of the time of an update")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(f"Forecast: where the time of an update of {BATCH:,} rows goes")
    return figure


def _datasets(datasets: Sequence[Mapping[str, Any]]) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained", sharey=True)
    for ranks in (1, 8, 64, 256):
        found = [
            one["seconds"] for one in datasets if one["ranks"] == ranks and one["width"] == WIDTH
        ]
        axes[0].loglog(PAIRS, found, marker="o", label=f"{ranks} GPU{'s' if ranks > 1 else ''}")
    for width in WIDTHS:
        found = [
            one["seconds"] for one in datasets if one["pairs"] == 1e9 and one["width"] == width
        ]
        axes[1].loglog(RANKS, found, marker="o", label=f"width {width}")
    axes[0].set_xlabel("pairs")
    axes[0].set_title(f"width {WIDTH}")
    axes[1].set_xlabel("GPUs")
    axes[1].set_xticks(RANKS, [str(ranks) for ranks in RANKS])
    axes[1].minorticks_off()
    axes[1].set_title("one billion pairs")
    for axis in axes:
        axis.set_yticks(
            [1, 60, _HOUR, _DAY, 30 * _DAY], ["1 s", "1 min", "1 h", "1 day", "30 days"]
        )
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(f"Forecast: one dataset, ten passes in batches of {BATCH:,}")
    return figure


def _largest(crossings: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot a bar over the ranks for every width and batch, coloured by the largest term."""
    figure, axis = plt.subplots(figsize=(11, 5.6), layout="constrained")
    for place, one in enumerate(crossings):
        starts = [*one["largest"], (RANKS[-1] * 1.3, "")]
        for (begin, term), (end, _) in pairwise(starts):
            axis.barh(place, end - begin, left=begin, color=_COLOURS[term], height=0.75)
    names = [f"width {one['width']}, batch {one['batch']:,}" for one in crossings]
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xscale("log", base=2)
    axis.set_xticks(RANKS, [str(ranks) for ranks in RANKS])
    axis.set_xlim(1, RANKS[-1] * 1.3)
    axis.set_xlabel("GPUs")
    for edge in range(len(BATCHES), len(names), len(BATCHES)):
        axis.axhline(edge - 0.5, color="white", linewidth=3)
    used = dict.fromkeys(term for one in crossings for _, term in one["largest"])
    handles = [Rectangle((0, 0), 1, 1, color=_COLOURS[term]) for term in used]
    figure.legend(handles, list(used), loc="outside right center")
    axis.set_title("Forecast: the largest term of an update")
    return figure


def _stack(
    axis: Axes,
    places: np.ndarray,
    found: Sequence[Mapping[str, float]],
    unit: float,
    width: float,
) -> None:
    below = np.zeros(len(places))
    for term in TERMS:
        heights = np.array([unit * one[term] for one in found])
        axis.bar(places, heights, width, below, label=term, color=_COLOURS[term])
        below += heights


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    plt.close(figure)
    return path
