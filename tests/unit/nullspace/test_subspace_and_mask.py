"""Eigen-coordinates, kept energy and the elementwise mask."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.nullspace.mask import rectangular_mask
from workers.nullspace.moments import SecondMoment, sum_of_products
from workers.nullspace.subspace import EigenBasis, eigenbasis, identity_basis

DOUBLE = torch.float64


def random_moment(seed: int, count: int, width: int) -> SecondMoment:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator, dtype=DOUBLE) + 1
    return SecondMoment(count, sum_of_products(rows, rows))


def test_basis_rebuilds_the_moment_and_is_orthonormal() -> None:
    moment = random_moment(0, 50, 12)
    basis = eigenbasis(moment)
    rebuilt = basis.vectors_II @ torch.diag(basis.values_I) @ basis.vectors_II.mT
    torch.testing.assert_close(rebuilt, moment.sum_II)
    torch.testing.assert_close(basis.vectors_II.mT @ basis.vectors_II, torch.eye(12, dtype=DOUBLE))
    assert (basis.values_I.diff() <= 0).all()


def test_null_space_basis_does_not_depend_on_rounding() -> None:
    moment = random_moment(1, 4, 12)
    noise = 1e-15 * torch.randn(12, 12, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    noisy = SecondMoment(4, moment.sum_II * (1 + (noise + noise.mT)))
    one, other = eigenbasis(moment).vectors_II, eigenbasis(noisy).vectors_II
    torch.testing.assert_close(one[:, 4:], other[:, 4:], atol=1e-10, rtol=0)


def test_null_space_basis_is_orthonormal_at_low_rank() -> None:
    vectors = eigenbasis(random_moment(3, 1, 30)).vectors_II
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(30, dtype=DOUBLE))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 500), st.floats(0.05, 1.0))
def test_rank_is_the_smallest_that_keeps_the_energy(seed: int, kept: float) -> None:
    values = eigenbasis(random_moment(seed, 30, 8)).values_I
    rank = EigenBasis(torch.eye(8, dtype=DOUBLE), values).rank_at(kept)
    total = values.sum()
    assert values[:rank].sum() >= kept * total - 1e-9 * total
    assert rank == 1 or values[: rank - 1].sum() < kept * total


def test_rank_does_not_depend_on_the_scale_of_features() -> None:
    moment = random_moment(4, 60, 10)
    huge = SecondMoment(60, moment.sum_II * 1e4)
    assert eigenbasis(moment).rank_at(0.9) == eigenbasis(huge).rank_at(0.9)


def test_nothing_is_protected_before_the_first_dataset() -> None:
    assert identity_basis(7).rank_at(0.95) == 0
    assert rectangular_mask(identity_basis(3), identity_basis(7), 0.95).all()


def test_all_energy_of_full_rank_moments_blocks_everything() -> None:
    outputs, inputs = eigenbasis(random_moment(5, 50, 4)), eigenbasis(random_moment(6, 50, 6))
    assert not rectangular_mask(outputs, inputs, 1.0).any()


def test_interference_is_elementwise_in_eigen_coordinates() -> None:
    """What Σ r_i s_j M_ij² says is what old scores do, over all row combinations."""
    generator = torch.Generator().manual_seed(7)
    inputs_BI = torch.randn(30, 6, generator=generator, dtype=DOUBLE)
    partners_BE = torch.randn(20, 4, generator=generator, dtype=DOUBLE)
    inputs = eigenbasis(SecondMoment(30, sum_of_products(inputs_BI, inputs_BI)))
    outputs = eigenbasis(SecondMoment(20, sum_of_products(partners_BE, partners_BE)))
    change_EI = torch.randn(4, 6, generator=generator, dtype=DOUBLE)
    moved = partners_BE @ (outputs.vectors_II @ change_EI @ inputs.vectors_II.mT) @ inputs_BI.mT
    entrywise = outputs.values_I[:, None] * inputs.values_I * change_EI.square()
    torch.testing.assert_close(entrywise.sum(), moved.square().sum())
