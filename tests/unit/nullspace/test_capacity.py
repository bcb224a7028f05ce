"""What a dataset would meet at a head."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.nullspace.references import rectangular_mask
from workers.nullspace.capacity import (
    HeadMoments,
    moment_distance,
    preflight,
)
from workers.nullspace.moments import SecondMoment, no_rows
from workers.nullspace.subspace import eigenbasis

DOUBLE = torch.float64


def moment(rows_BI: torch.Tensor) -> SecondMoment:
    return no_rows(rows_BI.shape[1]).add_rows_(rows_BI)


def inputs(seed: int, columns: slice = slice(0, 12), count: int = 40) -> torch.Tensor:
    """Unit features of width 12 in some of the columns, and the constant 1."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(count, 12, dtype=DOUBLE)
    rows[:, columns] = torch.randn(count, 12, generator=generator, dtype=DOUBLE)[:, columns]
    rows = torch.nn.functional.normalize(rows, dim=1)
    return torch.cat([rows, torch.ones(count, 1, dtype=DOUBLE)], dim=1)


def partners(seed: int, columns: slice = slice(0, 6), count: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 1000)
    rows = torch.zeros(count, 6, dtype=DOUBLE)
    rows[:, columns] = torch.randn(count, 6, generator=generator, dtype=DOUBLE)[:, columns]
    return rows


def head(
    seed: int, columns: slice = slice(0, 12), output_columns: slice = slice(0, 6)
) -> HeadMoments:
    return HeadMoments(moment(inputs(seed, columns)), moment(partners(seed, output_columns)))


def test_protected_share_equals_projection_of_the_rows() -> None:
    earlier, rows = head(0, slice(0, 5)), inputs(1)
    basis = eigenbasis(earlier.inputs)
    span = basis.vectors_II[:, : basis.rank_at(0.9)]
    report = preflight(HeadMoments(moment(rows), head(1).partners), earlier, rectangular_mask, 0.9)
    expected = (rows @ span).square().sum() / rows.square().sum()
    assert report.protected_share == pytest.approx(float(expected), rel=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 500), st.floats(0.3, 1.0))
def test_the_same_dataset_again_is_within_the_protected_span(seed: int, kept: float) -> None:
    report = preflight(head(seed), head(seed), rectangular_mask, kept)
    assert report.protected_share >= kept - 1e-9
    assert report.moment_distance == pytest.approx(0, abs=1e-9)
    assert report.free_share_after == report.free_share
    assert report.learnable_share <= 1 - kept**2 + 1e-9


def test_learnable_share_equals_the_gradient_energy_that_is_free() -> None:
    """Brute force: all products of a partner and an input, as independent draws would give."""
    earlier, rows, sent = head(2, slice(0, 6), slice(0, 3)), inputs(3), partners(3)
    outputs, basis = eigenbasis(earlier.partners), eigenbasis(earlier.inputs)
    free = rectangular_mask(outputs, basis, 0.9).double()
    entries = torch.einsum("ae,bi->abei", sent @ outputs.vectors_II, rows @ basis.vectors_II)
    expected = (entries * free).square().sum() / entries.square().sum()
    report = preflight(HeadMoments(moment(rows), moment(sent)), earlier, rectangular_mask, 0.9)
    assert report.learnable_share == pytest.approx(float(expected), rel=1e-9)


def test_a_full_head_says_that_nothing_can_be_learned() -> None:
    report = preflight(head(7), head(8), rectangular_mask, 1.0)
    assert (report.free_share, report.learnable_share) == (0.0, 0.0)
    assert "Nothing can be learned: all 78 entries of this head are blocked" in report.advice[0]
    for cure in ("larger width", "smaller kept_energy", "remove the moments"):
        assert cure in report.advice[0]
    assert report.free_share_after == 0


def test_a_dataset_within_the_blocked_spans_is_reported() -> None:
    earlier = head(9, slice(0, 6), slice(0, 3))
    report = preflight(head(10, slice(0, 5), slice(0, 3)), earlier, rectangular_mask, 1.0)
    assert report.free_share > 0.5
    assert report.learnable_share < 1e-9
    assert "Almost nothing can be learned: 21 of 78 entries" in report.advice[0]
    assert "100.0% of this dataset's energy" in report.advice[0]


def test_features_of_another_encoder_are_noticed() -> None:
    earlier = head(11, slice(0, 4), slice(0, 3))
    report = preflight(head(12, slice(6, 12)), earlier, rectangular_mask, 0.9)
    assert report.moment_distance == pytest.approx(1)
    assert report.familiarity == 0
    assert any("same encoder" in sentence for sentence in report.advice)
    alike = preflight(head(13, slice(0, 4)), earlier, rectangular_mask, 0.9)
    assert not any("same encoder" in sentence for sentence in alike.advice)


def test_random_directions_are_not_familiar_and_old_ones_are() -> None:
    earlier = head(20, slice(0, 5))
    rank = eigenbasis(earlier.inputs).rank_at(1.0)
    reports = [
        preflight(head(21, columns), earlier, rectangular_mask, 1.0)
        for columns in (slice(0, 5), slice(0, 12), slice(5, 12))
    ]
    inside, anywhere, outside = (report.familiarity for report in reports)
    assert inside == pytest.approx(1)
    # 5 of 12 columns are what chance has, but for the constant that counts in the rank.
    assert rank == 6
    assert anywhere is not None
    assert anywhere < 0.1
    assert outside == 0
    assert not any("same encoder" in sentence for sentence in reports[0].advice)


def test_distance_is_the_largest_difference_of_energy_shares() -> None:
    first, second = moment(inputs(14, slice(0, 8))), moment(inputs(15, slice(3, 12)))
    distance = moment_distance(first, second)
    shares = [m.sum_II / m.sum_II.trace() for m in (first, second)]
    values, vectors = torch.linalg.eigh(shares[0] - shares[1])
    span = vectors[:, values > 0]
    reached = (span.mT @ (shares[0] - shares[1]) @ span).trace()
    assert distance == pytest.approx(float(reached), rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    for rank in range(1, 13):
        other = torch.linalg.qr(torch.randn(13, rank, generator=generator, dtype=DOUBLE)).Q
        assert abs((other.mT @ (shares[0] - shares[1]) @ other).trace()) <= distance + 1e-12


def test_preflight_refuses_what_does_not_fit() -> None:
    empty = HeadMoments(SecondMoment(0, torch.zeros(13, 13)), SecondMoment(0, torch.zeros(6, 6)))
    broken = HeadMoments(SecondMoment(4, torch.full((13, 13), torch.nan)), head(16).partners)
    wide = HeadMoments(moment(torch.ones(4, 9, dtype=DOUBLE)), head(16).partners)
    for new, words in (
        (empty, "the dataset has 0 rows"),
        (broken, "not finite"),
        (wide, "inputs are 9 wide, those of earlier datasets 13"),
    ):
        with pytest.raises(ValueError, match=words):
            preflight(new, head(17), rectangular_mask, 0.9)
    with pytest.raises(ValueError, match=r"kept_energy is 1\.5"):
        preflight(head(16), head(17), rectangular_mask, 1.5)
