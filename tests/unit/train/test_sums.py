"""Sums over a dataset's rows are exact enough for what is computed from them."""

import pytest
import torch

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.model.heads import PairedRows, initial_heads
from workers.nullspace.centred import dataset_moments
from workers.train.learn import moments_of_halves, prepare_rows
from workers.train.rows import RowsInMemory
from workers.train.run import Run

PAIR = ModalityPair(first="image", second="text")
SPEC = ModelSpec(width=8, modalities={"image": 24, "text": 16}, lift=0)


def cone(rows: int, width: int, spread: float) -> torch.Tensor:
    """Rows whose cosines with each other are 1 − spread², about."""
    generator = torch.Generator().manual_seed(width)
    axis = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    return axis + spread * width**-0.5 * torch.randn(rows, width, generator=generator)


@pytest.mark.parametrize("spread", [1.0, 0.03, 0.003])
def test_covariances_of_rows_that_hardly_differ_are_those_of_float64(spread: float) -> None:
    keys_N = torch.arange(9000)
    raw = PairedRows(cone(9000, 24, spread), cone(9000, 16, spread), keys_N, keys_N)
    heads = initial_heads(SPEC)
    first, second = moments_of_halves(heads, PAIR, RowsInMemory(raw), Run())
    found = dataset_moments(first + second)
    ready = prepare_rows(heads, PAIR, raw)
    sides = ready.first_NI[:, :-1].double(), ready.second_NJ[:, :-1].double()
    joint = torch.cov(torch.cat(sides, dim=1).mT, correction=0)
    weight = float(found.weight)
    for sum_FG, expected_FG in (
        (found.first_FF, joint[:24, :24]),
        (found.second_GG, joint[24:, 24:]),
        (found.cross_FG, joint[:24, 24:]),
    ):
        # Rounding of float32 products of what differs, and to the grid of exact sums.
        rounding = 1e-6 * float(expected_FG.abs().max()) + 3e-12
        torch.testing.assert_close(sum_FG / weight, expected_FG, rtol=0, atol=rounding)
