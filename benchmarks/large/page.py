"""Markdown page of `benchmarks.large_dataset`, and a plot of each rank's memory over time."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

_COLOURS = ("#2f6fb0", "#e08b2c", "#5b9a5b", "#c0504d")
_PHASES = ("#f2f2f2", "#ffffff")
_DOTS_PER_INCH = 110
_SHORTEST_NAMED = 0.03
_LIMIT = (
    "The kernel enforces the limit with a control group for each rank. It includes the page cache "
    "that a rank fills, which is reclaimed near the limit; *own* is memory that cannot be "
    "reclaimed.\n"
)


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    told, result = document["configuration"], document["result"]
    size = told["bytes_of_features"] / 2**30
    question = (
        f"**Question.** Can {told['rows']:,} pairs of width {told['width']}, {size:.1f} GiB of "
        f"float16 features, be learned by ranks that have {told['limit_mib_each']} MiB each?\n"
    )
    lines = [
        "# A dataset that is larger than memory\n",
        question,
        _LIMIT,
        *_table("machine", document["machine"]),
        *_table("configuration", told),
        "## Result\n",
        *_table("result", {k: v for k, v in result.items() if k != "seconds_of_phases"}),
        *_table("seconds of each phase, leading rank", result["seconds_of_phases"]),
        "![Memory of each rank over time](large-dataset.png)\n",
        (
            "Made by `python -m benchmarks.large_dataset`; seconds were measured on a shared "
            "machine.\n"
        ),
    ]
    return "\n".join(lines)


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Plot own memory of each rank, the sum with page cache as a thin line, and phases as bands."""
    samples, told = document["samples"], document["configuration"]
    figure, axis = plt.subplots(figsize=(11, 4.6), layout="constrained")
    seconds = [sample["second"] for sample in samples]
    for rank in range(told["ranks"]):
        own = [sample["own"][rank] / 2**20 for sample in samples]
        both = [(sample["own"][rank] + sample["cache"][rank]) / 2**20 for sample in samples]
        colour = _COLOURS[rank % len(_COLOURS)]
        axis.plot(seconds, own, color=colour, linewidth=2, label=f"rank {rank}: own")
        axis.plot(seconds, both, color=colour, linewidth=0.8, alpha=0.6, label="with page cache")
    axis.axhline(told["limit_mib_each"], color="black", linestyle="--", label="limit")
    _shade(axis, samples)
    axis.set(xlabel="seconds", ylabel="MiB", xlim=(0, seconds[-1]), ylim=(0, None))
    size = told["bytes_of_features"] / 2**30
    axis.set_title(f"Learning {size:.1f} GiB of features with {told['ranks']} ranks")
    axis.legend(loc="lower right", ncols=3, fontsize=8)
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    plt.close(figure)


def _shade(axis: Axes, samples: Sequence[Mapping[str, Any]]) -> None:
    """Draw the phases as labelled bands."""
    end = samples[-1]["second"]
    for number, (phase, group) in enumerate(groupby(samples, lambda sample: sample["phase"])):
        times = [sample["second"] for sample in group]
        axis.axvspan(times[0], times[-1] + 1, color=_PHASES[number % 2], zorder=0)
        if times[-1] - times[0] > _SHORTEST_NAMED * end:
            middle = (times[0] + times[-1]) / 2
            axis.text(
                middle, 0.99, phase, ha="center", va="top", transform=axis.get_xaxis_transform()
            )


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    rows = [f"| {key.replace('_', ' ')} | {_shown(value)} |" for key, value in values.items()]
    return [f"| {name} | |", "|---|---|", *rows, ""]


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(each) for each in value)
    return f"{value:,}" if isinstance(value, int) else str(value)
