"""Plots of the stream benchmark: forgetting as heat maps, retention as curves.

T datasets; `matrix_TT[t][s]` is the recall of dataset s after version t + 1.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from benchmarks.figures import Figures
from benchmarks.report import Report
from benchmarks.runs import known_methods

_TITLES = {"recall_at_1": "R@1", "recall_at_10": "R@10"}
_DOTS_PER_INCH = 110
# Lower bound of the colour scale in points, so that noise does not look like forgetting.
_PALE = 5.0
_OURS = ("nullspace", "nullspace_preserve")


def draw_all(report: Report, folder: Path) -> list[Path]:
    """Draw all plots. Joint training is left out, because it learns all datasets at once."""
    chains = {name: one for name, one in report.methods.items() if one.epochs is None}
    if not chains:
        return []
    drawn = []
    for metric, title in _TITLES.items():
        drawn.append(folder / f"{report.stem}-forgetting-{metric.replace('_', '-')}.png")
        draw_forgetting(matrices(chains, metric), report.names, title, drawn[-1])
    drawn.append(folder / f"{report.stem}-retention.png")
    draw_retention(chains, drawn[-1])
    return drawn


def matrices(methods: Mapping[str, Figures], metric: str) -> dict[str, np.ndarray]:
    """Return the T × T matrix of each method."""
    return {name: np.asarray(one.matrices[metric]) for name, one in methods.items()}


def draw_forgetting(
    recalls: Mapping[str, np.ndarray], datasets: Sequence[str], title: str, path: Path
) -> None:
    """Plot the change of recall since a dataset was learned, in points, with one panel per
    method."""
    changes = {name: change_since_learned(matrix_TT) for name, matrix_TT in recalls.items()}
    limit = max(_PALE, *(float(np.nanmax(np.abs(change))) for change in changes.values()))
    columns = min(4, len(changes))
    lines = math.ceil(len(changes) / columns)
    side = max(2.6, 0.42 * len(datasets))
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(side * columns + 2.2, (side + 0.3) * lines + 1.6),
        layout="constrained",
        squeeze=False,
    )
    figure.suptitle(f"What earlier datasets lost, {title}: row after learning, column measured")
    for place, (name, change_TT) in enumerate(changes.items()):
        axis = axes[divmod(place, columns)]
        image = _draw_matrix(axis, change_TT, limit)
        axis.set_title(name)
        _name_datasets(axis, datasets, place % columns == 0, place + columns >= len(changes))
    for axis in axes.flat[len(changes) :]:
        axis.set_axis_off()
    figure.colorbar(image, ax=axes, label=f"change of {title} since learned (points)", shrink=0.7)
    _save(figure, path)


def change_since_learned(matrix_TT: np.ndarray) -> np.ndarray:
    """Return the change in points; NaN for datasets that are not learned yet."""
    change_TT: np.ndarray = 100 * (matrix_TT - np.diag(matrix_TT))
    change_TT[np.triu_indices_from(change_TT, k=1)] = np.nan
    return change_TT


def draw_retention(methods: Mapping[str, Figures], path: Path) -> None:
    """Plot mean recall of the datasets learned so far, relative to when each was learned."""
    figure, axes = plt.subplots(1, 2, figsize=(14, 5.4), layout="constrained", sharey=True)
    for axis, (metric, title) in zip(axes, _TITLES.items(), strict=True):
        for name, matrix_TT in matrices(methods, metric).items():
            _draw_curve(axis, name, retention(matrix_TT))
        axis.axhline(100, color="black", linewidth=0.8, linestyle=":")
        axis.set_xlabel("version (datasets learned)")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("mean recall, % of when learned")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle("What is kept of the datasets learned so far")
    _save(figure, path)


def retention(matrix_TT: np.ndarray) -> np.ndarray:
    """Return, for each version, mean recall of the learned datasets in % of their mean when
    learned."""
    learned_T = np.diag(matrix_TT).cumsum()
    now_T = np.tril(matrix_TT).sum(axis=1)
    # Undefined if nothing was ever retrieved.
    kept_T: np.ndarray = np.divide(now_T, learned_T, out=np.ones_like(now_T), where=learned_T > 0)
    kept_T *= 100
    return kept_T


def _draw_curve(axis: Axes, name: str, kept_T: np.ndarray) -> None:
    """Draw a curve. A method has the same style in every plot; from the eleventh on, colours repeat
    dashed."""
    known = known_methods()
    again, colour = divmod(known.index(name) if name in known else len(known), 10)
    wide = name in _OURS
    axis.plot(
        np.arange(1, len(kept_T) + 1),
        kept_T,
        label=name,
        color=f"C{colour}",
        linestyle="--" if again else "-",
        linewidth=3 if wide else 1.5,
        marker="o" if wide else ".",
        zorder=3 if wide else 2,
    )


def _draw_matrix(axis: Axes, change_TT: np.ndarray, limit: float) -> AxesImage:
    image = axis.imshow(change_TT, cmap="RdBu", vmin=-limit, vmax=limit)
    for (after, dataset), value in np.ndenumerate(change_TT):
        if after > dataset:
            ink = "white" if abs(value) > 0.6 * limit else "black"
            text = f"{value:+.0f}" if round(value) else "0"
            axis.text(dataset, after, text, ha="center", va="center", color=ink, fontsize=8)
    return image


def _name_datasets(axis: Axes, names: Sequence[str], on_left: bool, below: bool) -> None:
    """Label datasets at the edges of the figure only, because panels share axes."""
    places = range(len(names))
    axis.set_xticks(places, names if below else [""] * len(names), rotation=60, ha="right")
    axis.set_yticks(places, names if on_left else [""] * len(names))
    axis.tick_params(labelsize=8)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    plt.close(figure)
