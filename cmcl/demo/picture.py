"""Picture of the forgetting matrices with and without protection."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from cmcl.demo.figures import StreamFigures


def draw_forgetting(protected: StreamFigures, unprotected: StreamFigures, path: Path) -> None:
    """Draw the change of recall at 1, in points, since each dataset was learned."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    changes = [_change(stream) for stream in (protected, unprotected)]
    limit = max(5.0, float(np.nanmax(np.abs(np.stack(changes)))))
    for axis, change, title in zip(axes, changes, ("protected", "unprotected"), strict=True):
        image = _draw(axis, change, protected.names, limit)
        axis.set_title(title)
    axes[0].set_ylabel("after learning")
    figure.colorbar(image, ax=axes, label="change of R@1 since learned (points)", shrink=0.8)
    figure.suptitle("What earlier datasets lost")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _change(stream: StreamFigures) -> np.ndarray:
    size = len(stream.names)
    change = np.full((size, size), np.nan)
    for after, row in enumerate(stream.at_1):
        for dataset, now in enumerate(row):
            change[after, dataset] = 100 * (now - stream.at_1[dataset][dataset])
    return change


def _draw(axis: Axes, change: np.ndarray, names: list[str], limit: float) -> AxesImage:
    image = axis.imshow(change, cmap="RdBu", vmin=-limit, vmax=limit)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("held-out rows of")
    for (after, dataset), value in np.ndenumerate(change):
        if not np.isnan(value):
            ink = "white" if abs(value) > 0.6 * limit else "black"
            axis.text(dataset, after, f"{value:+.1f}", ha="center", va="center", color=ink)
    return image
