"""Eigen-coordinates, kept energy and the elementwise mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.nullspace.references import free_energy, rectangular_mask
from workers.nullspace.mask import (
    MaskRule,
    UpdateSpace,
    everything_free,
    product_mask,
)
from workers.nullspace.moments import SecondMoment, no_rows
from workers.nullspace.subspace import EigenBasis, directions_within, eigenbasis, identity_basis

DOUBLE = torch.float64
BOTH_RULES = pytest.mark.parametrize("rule", [rectangular_mask, product_mask])


def random_moment(seed: int, count: int, width: int) -> SecondMoment:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator, dtype=DOUBLE) + 1
    return no_rows(rows.shape[1]).add_rows_(rows)


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


@settings(max_examples=30)
@given(st.integers(0, 500), st.floats(0.05, 1.0))
def test_rank_is_the_smallest_that_keeps_the_energy(seed: int, kept: float) -> None:
    values = eigenbasis(random_moment(seed, 30, 8)).values_I
    rank = EigenBasis(torch.eye(8, dtype=DOUBLE), values).rank_at(kept)
    total = values.sum()
    assert values[:rank].sum() >= kept * total - 1e-9 * total
    assert rank == 1 or values[: rank - 1].sum() < kept * total


@BOTH_RULES
def test_nothing_is_protected_before_the_first_dataset(rule: MaskRule) -> None:
    assert identity_basis(7).rank_at(0.95) == 0
    assert rule(identity_basis(3), identity_basis(7), 0.95).all()


@BOTH_RULES
def test_all_energy_of_full_rank_moments_blocks_everything(rule: MaskRule) -> None:
    outputs, inputs = eigenbasis(random_moment(5, 50, 4)), eigenbasis(random_moment(6, 50, 6))
    assert not rule(outputs, inputs, 1.0).any()


@BOTH_RULES
def test_all_energy_of_low_rank_moments_leaves_the_null_space_free(rule: MaskRule) -> None:
    outputs, inputs = eigenbasis(random_moment(5, 2, 8)), eigenbasis(random_moment(6, 3, 9))
    free_EI = rule(outputs, inputs, 1.0)
    assert not free_EI[:2, :3].any()
    assert free_EI[2:].all()
    assert free_EI[:, 3:].all()


@BOTH_RULES
@pytest.mark.parametrize("kept", [-0.1, 1.1, float("nan")])
def test_energy_to_keep_outside_its_range_is_refused(rule: MaskRule, kept: float) -> None:
    basis = eigenbasis(random_moment(8, 50, 4))
    with pytest.raises(ValueError, match=r"kept_energy is .*; permitted are 0 to 1"):
        rule(basis, basis, kept)


def spectrum(seed: int, width: int, rank: int, decades: float, levels: int) -> EigenBasis:
    """Falling values over some decades and then zeros; on few levels many of them are equal."""
    generator = torch.Generator().manual_seed(seed)
    steps = (torch.rand(width, generator=generator, dtype=DOUBLE) * levels).round() / levels
    values = 10 ** (-decades * steps.sort().values)
    values[rank:] = 0
    return EigenBasis(torch.eye(width, dtype=DOUBLE), values)


SPECTRA = st.builds(
    spectrum,
    st.integers(0, 1000),
    st.just(17),
    st.integers(1, 17),
    st.floats(0.0, 5.0),
    st.sampled_from([1, 3, 1000]),
)


@settings(max_examples=150)
@given(SPECTRA, SPECTRA, st.floats(0.01, 1.0))
def test_product_rule_blocks_the_largest_and_no_more_than_needed(
    outputs: EigenBasis, inputs: EigenBasis, kept: float
) -> None:
    space = UpdateSpace(outputs, inputs, product_mask(outputs, inputs, kept))
    total = space.energy_EI.sum()
    blocked, free = space.energy_EI[~space.free_EI], space.energy_EI[space.free_EI]
    assert free.sum() <= (1 - kept) * total + 1e-9 * total
    assert len(blocked) > 0
    assert len(free) == 0 or free.max() <= blocked.min()
    assert free.sum() + blocked.min() > (1 - kept) * total - 1e-9 * total


def test_product_rule_equals_sorting_all_energies() -> None:
    outputs, inputs = eigenbasis(random_moment(9, 40, 30)), eigenbasis(random_moment(10, 80, 50))
    energy_EI = torch.outer(outputs.values_I, inputs.values_I)
    rising, order = energy_EI.flatten().sort()
    for kept in (0.5, 0.8, 0.95, 0.999):
        expected = torch.zeros(energy_EI.numel(), dtype=torch.bool)
        expected[order] = rising.cumsum(0) <= (1 - kept) * energy_EI.sum()
        assert torch.equal(product_mask(outputs, inputs, kept), expected.view_as(energy_EI))


def test_product_rule_frees_equal_energies_while_they_fit() -> None:
    """Whitened moments: all energies are equal, and a fifth of them is free."""
    flat = EigenBasis(torch.eye(10, dtype=DOUBLE), torch.ones(10, dtype=DOUBLE))
    free_EI = product_mask(flat, flat, 0.795)
    assert free_EI.flatten().tolist() == [True] * 20 + [False] * 80


def test_shares_of_a_space_are_those_of_its_entries() -> None:
    outputs, inputs = spectrum(13, 2, 2, 0.0, 1), spectrum(14, 4, 2, 0.0, 1)
    free_EI = torch.tensor([[False, True, True, True], [False, False, True, True]])
    space = UpdateSpace(outputs, inputs, free_EI)
    assert space.blocked_share == 3 / 8
    assert free_energy(space) == 1 / 4
    free = everything_free(3, 5)
    assert free.free_EI.shape == (3, 5)
    assert (free.blocked_share, free_energy(free)) == (0.0, 0.0)


def test_directions_within_a_span_diagonalise_the_moment_there() -> None:
    moment_II, basis = random_moment(16, 30, 8).sum_II, eigenbasis(random_moment(17, 30, 8))
    span_IK = basis.vectors_II[:, 2:6]
    turned_IK = directions_within(moment_II, span_IK)
    within_KK = turned_IK.mT @ moment_II @ turned_IK
    torch.testing.assert_close(within_KK, within_KK.diag().diag(), atol=1e-9, rtol=0)
    assert (within_KK.diag().diff() <= 0).all()
    torch.testing.assert_close(turned_IK @ turned_IK.mT, span_IK @ span_IK.mT)


def test_a_moment_with_infinite_values_is_refused() -> None:
    moment = SecondMoment(3, torch.full((2, 2), float("inf"), dtype=DOUBLE))
    with pytest.raises(ValueError, match="moment of 3 rows has values that are not finite"):
        eigenbasis(moment)


def test_interference_is_elementwise_in_eigen_coordinates() -> None:
    """Σ r_i s_j M_ij² equals the change of old scores, over all row combinations."""
    generator = torch.Generator().manual_seed(7)
    inputs_BI = torch.randn(30, 6, generator=generator, dtype=DOUBLE)
    partners_BE = torch.randn(20, 4, generator=generator, dtype=DOUBLE)
    inputs = eigenbasis(no_rows(inputs_BI.shape[1]).add_rows_(inputs_BI))
    outputs = eigenbasis(no_rows(partners_BE.shape[1]).add_rows_(partners_BE))
    change_EI = torch.randn(4, 6, generator=generator, dtype=DOUBLE)
    moved = partners_BE @ (outputs.vectors_II @ change_EI @ inputs.vectors_II.mT) @ inputs_BI.mT
    entrywise = outputs.values_I[:, None] * inputs.values_I * change_EI.square()
    torch.testing.assert_close(entrywise.sum(), moved.square().sum())
