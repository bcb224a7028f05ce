"""Predicted errors of scores against those of the vectors that collections store, on rows of the example stream."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from workers.nullspace.compression import score_errors
from workers.serve.collections.table import signs
from workers.serve.versions.loading import Float32Array, truncated

STREAM = Path(__file__).parents[3] / "examples/stream"


def features(name: str, part: str) -> list[torch.Tensor]:
    table = pq.read_table(STREAM / f"{name}.{part}.parquet")
    sides = (np.stack(table[side].to_numpy()) for side in ("feature_a", "feature_b"))
    return [torch.nn.functional.normalize(torch.from_numpy(side).float()) for side in sides]


def embeddings(name: str, width: int) -> list[Float32Array]:
    """Held-out rows along the directions in which both sides of the training rows vary together."""
    first_NI, second_NJ = features(name, "train")
    means = first_NI.mean(0), second_NJ.mean(0)
    cross_IJ = (first_NI - means[0]).mT @ (second_NJ - means[1])
    left_IE, values_E, right_EJ = torch.linalg.svd(cross_IJ, full_matrices=False)
    heads = left_IE[:, :width], right_EJ[:width].mT
    sides = zip(features(name, "test"), means, heads, strict=True)
    return [
        torch.nn.functional.normalize(
            (side_NI - mean_I) @ head_IE / values_E[:width] ** 0.25
        ).numpy()
        for side_NI, mean_I, head_IE in sides
    ]


def scores(form: str, first_NE: Float32Array, second_NE: Float32Array) -> np.ndarray:
    """Scores of all combinations of rows (N x N) that are stored like that."""
    sides = first_NE, second_NE
    if form == "bit":
        one_NE, other_NE = (2.0 * signs(side_NE) - 1 for side_NE in sides)
        return np.sin(np.pi / 2 * (one_NE @ other_NE.T) / first_NE.shape[1])
    if form == "int8":
        steps = [np.abs(side_NE).max(axis=1, keepdims=True) / 127 for side_NE in sides]
        rounded = [
            np.round(side_NE / step) * step for side_NE, step in zip(sides, steps, strict=True)
        ]
    elif form == "float16":
        rounded = [side_NE.astype(np.float16).astype(np.float32) for side_NE in sides]
    else:
        rounded = [truncated(side_NE, int(form)) for side_NE in sides]
    return np.asarray(rounded[0] @ rounded[1].T)


@pytest.mark.parametrize("name", ["01_fashion_vt", "03_parts-views_vd", "04_digits_va"])
def test_errors_of_scores_are_predicted_within_a_tenth_from_half_of_the_rows(name: str) -> None:
    first_NE, second_NE = embeddings(name, 256)
    predicted = score_errors(torch.from_numpy(first_NE[::2]), torch.from_numpy(second_NE[::2]))
    assert list(predicted) == ["float16", "int8", "bit", "32", "64", "128"]
    exact_NN = first_NE.astype(np.float64) @ second_NE.T.astype(np.float64)
    for form, error in predicted.items():
        measured = float(np.sqrt(np.mean((scores(form, first_NE, second_NE) - exact_NN) ** 2)))
        # Rounding to float16 moves scores by 3e-6, which texts that repeat make uneven.
        assert error == pytest.approx(measured, rel=0.1, abs=1e-6), form


def test_rows_of_one_direction_lose_nothing_as_bits() -> None:
    rows_NE = torch.randn(200, 24, generator=torch.Generator().manual_seed(0))
    for direction_E in torch.nn.functional.normalize(rows_NE):
        one_NE = direction_E.expand(40, -1)
        assert score_errors(one_NE, one_NE)["bit"] == pytest.approx(0, abs=1e-3)
