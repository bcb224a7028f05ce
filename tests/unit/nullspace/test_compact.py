"""The compact form of a wide dataset's sums: what it stands for, how far it is off, and that it adds up to the bit."""

import random
from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmcl.contract.errors import InvalidVersion
from workers.model.artifact import (
    load_dataset_sums,
    load_moments,
    save_centred_moments,
    save_compact_moments,
    save_method_state,
)
from workers.nullspace.centred import CentredMoments, dataset_moments
from workers.nullspace.certificate import PairWeights, drift_and_error, relative_drift
from workers.nullspace.compact import CompactMoments, compact_moments
from workers.nullspace.moments import PairMoments, pair_moments

WIDTHS, SHARED, EMBEDDING = (60, 40), 12, 8
RIDGES = (0.02, 0.01)
SEEDS = st.integers(0, 10**6)
DECAYS = st.sampled_from([0.0, 0.7, 1.0, 2.0])


def rows(
    seed: int, decay: float = 1.0, count: int = 300, widths: tuple[int, int] = WIDTHS
) -> list[Tensor]:
    """Unit rows with the constant 1, whose spectrum falls as k^-decay; the two sides share some numbers."""
    generator = torch.Generator().manual_seed(seed)
    shared_NS = torch.randn(count, SHARED, generator=generator)
    sides = []
    for width in widths:
        own_NF = torch.randn(count, width, generator=generator)
        own_NF[:, :SHARED] += 2 * shared_NS
        rotation_FF = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        scale_F = torch.arange(1, width + 1).pow(-decay / 2)
        side_NF = (own_NF * scale_F) @ rotation_FF + torch.randn(width, generator=generator) / 4
        sides.append(
            torch.nn.functional.pad(torch.nn.functional.normalize(side_NF), (0, 1), value=1)
        )
    return sides


def moments_of(seed: int, decay: float = 1.0) -> PairMoments:
    return pair_moments(*rows(seed, decay))


def compacted(sums: CentredMoments) -> CompactMoments:
    found = compact_moments(sums, RIDGES, in_full=0)
    assert found is not None
    return found


def assert_equal_bits(one: CentredMoments, other: CentredMoments) -> None:
    for name, ours in vars(one).items():
        theirs = getattr(other, name)
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs, name


def test_they_are_moments_of_the_rows_in_the_kept_directions_and_of_noise() -> None:
    sides = rows(0, decay=3.0)
    compact = compacted(dataset_moments(pair_moments(*sides)))
    projected = []
    for side_NI, side in zip(sides, (compact.first, compact.second), strict=True):
        basis_FR = torch.linalg.qr(side.factor_FR).Q.float()
        assert basis_FR.shape[1] < side_NI.shape[1] - 1
        centre_F = side_NI[:, :-1].mean(0)
        kept_NF = (side_NI[:, :-1] - centre_F) @ basis_FR @ basis_FR.mT + centre_F
        projected.append(torch.nn.functional.pad(kept_NF, (0, 1), value=1))
    expected, found = dataset_moments(pair_moments(*projected)), compact.expanded()
    first_FF, second_GG = (side.rest_F.diag() for side in (compact.first, compact.second))
    torch.testing.assert_close(found.first_FF - first_FF, expected.first_FF, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.second_GG - second_GG, expected.second_GG, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.cross_FG, expected.cross_FG, rtol=0, atol=2e-3)


@settings(max_examples=20, deadline=None)
@given(SEEDS, DECAYS)
def test_no_direction_has_a_negative_variance(seed: int, decay: float) -> None:
    found = compacted(dataset_moments(moments_of(seed, decay))).expanded()
    both = torch.cat(
        [
            torch.cat([found.first_FF, found.cross_FG], dim=1),
            torch.cat([found.cross_FG.mT, found.second_GG], dim=1),
        ]
    )
    least, *_, most = torch.linalg.eigvalsh(both).tolist()
    # V_u K is rounded to multiples of 2⁻²⁰.
    assert least > -1e-7 * most


def test_no_correlation_is_above_one() -> None:
    """With nearly as many directions as rows, some are 1; rounding of directions that hardly vary adds 0.02."""
    sides = rows(0, count=600, widths=(500, 480))
    found = compact_moments(dataset_moments(pair_moments(*sides)), (0.00125, 0.00125), in_full=0)
    assert found is not None
    largest = float(torch.linalg.matrix_norm(found.cross_RQ.double() * 2.0**-14, 2))
    assert 0.998 < largest <= 1


@settings(max_examples=20, deadline=None)
@given(SEEDS, DECAYS)
def test_no_variance_is_off_by_more_than_the_error(seed: int, decay: float) -> None:
    full = dataset_moments(moments_of(seed, decay))
    compact = compacted(full)
    found = compact.expanded()
    for ours_FF, theirs_FF, error in zip(
        (full.first_FF, full.second_GG),
        (found.first_FF, found.second_GG),
        compact.errors,
        strict=True,
    ):
        off = float(torch.linalg.eigvalsh(ours_FF - theirs_FF).abs().max()) / full.weight
        assert 0.99 * error < off <= error
        assert bool((theirs_FF.diagonal() >= ours_FF.diagonal() - 1e-9).all())


def weights(seed: int, scale: float = 1.0) -> PairWeights:
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        scale * torch.randn(EMBEDDING, width + 1, generator=generator, dtype=torch.float64)
        for width in WIDTHS
    )
    return PairWeights(first, second)


def least_varying(full: CentredMoments, heads: PairWeights, skipped: int) -> PairWeights:
    """Heads that read as many directions as they have rows, after `skipped` ones that vary least."""
    sides = []
    for sum_FF, head_EI in ((full.first_FF, heads.first_EI), (full.second_GG, heads.second_EJ)):
        vectors_FE = torch.linalg.eigh(sum_FF).eigenvectors[:, skipped : skipped + EMBEDDING]
        mixed_EF = head_EI[:, :EMBEDDING] @ vectors_FE.mT
        sides.append(torch.nn.functional.pad(mixed_EF, (0, 1)))
    return PairWeights(*sides)


@settings(max_examples=40, deadline=None)
@given(SEEDS, DECAYS, st.sampled_from([1e-3, 0.1, 1.0]), st.sampled_from([None, 0, 16, 28]))
def test_drift_is_within_its_error(
    seed: int, decay: float, scale: float, skipped: int | None
) -> None:
    """With heads that read all directions then, and with heads that read those that vary least."""
    full = dataset_moments(moments_of(seed, decay))
    compact = compacted(full)
    stored, then, step = compact.expanded().pooled, weights(seed), weights(seed + 1, scale)
    if skipped is not None:
        then = least_varying(full, then, skipped)
    now = PairWeights(then.first_EI + step.first_EI, then.second_EJ + step.second_EJ)
    drift, error = drift_and_error(stored, then, now, compact.errors)
    assert drift == relative_drift(stored, then, now)
    if error is not None:
        assert abs(relative_drift(full.pooled, then, now) - drift) <= error
    if skipped is None:
        assert error is not None
        assert 0 < error < 0.05 * max(1.0, drift / scale)


def test_drift_of_scores_no_larger_than_their_error_has_no_bound() -> None:
    full = dataset_moments(moments_of(0, decay=2.0))
    compact = compacted(full)
    then, now = (least_varying(full, weights(seed), skipped=0) for seed in (0, 1))
    _, error = drift_and_error(compact.expanded().pooled, then, now, compact.errors)
    assert error is None


@settings(max_examples=20, deadline=None)
@given(SEEDS, DECAYS, st.randoms(use_true_random=False))
def test_the_order_of_summation_does_not_change_a_bit(
    seed: int, decay: float, order: random.Random
) -> None:
    """As another machine or number of threads might sum."""
    compact = compacted(dataset_moments(moments_of(seed, decay)))
    factor_FR = compact.first.factor_FR
    columns = order.sample(range(factor_FR.shape[1]), factor_FR.shape[1])
    total_FF = torch.zeros(len(factor_FR), len(factor_FR), dtype=torch.float64)
    for column in columns:
        total_FF += factor_FR[:, column].outer(factor_FR[:, column])
    assert torch.equal(total_FF, factor_FR @ factor_FR.mT)
    grid = total_FF * 2.0**32
    assert torch.equal(
        compact.expanded().first_FF, grid.round() / 2.0**32 + compact.first.rest_F.diag()
    )


@settings(max_examples=10, deadline=None)
@given(st.lists(SEEDS, min_size=2, max_size=4, unique=True), st.randoms(use_true_random=False))
def test_datasets_add_up_in_any_order_and_are_taken_back_to_the_bit(
    seeds: list[int], order: random.Random
) -> None:
    stored = [save_compact_moments(compacted(dataset_moments(moments_of(each)))) for each in seeds]
    datasets = [load_dataset_sums(each) for each in stored]
    shuffled = order.sample(datasets, len(datasets))
    assert_equal_bits(reduce(add, datasets), reduce(add, shuffled))
    assert_equal_bits(reduce(add, datasets) - datasets[0], reduce(add, datasets[1:]))
    # With one that is stored in full.
    full = load_dataset_sums(save_centred_moments(moments_of(seeds[0] + 1)))
    assert_equal_bits(full + datasets[0] - datasets[0], full)


def test_what_is_stored_has_the_same_bits_and_fewer_of_them() -> None:
    moments = moments_of(3)
    compact = compacted(dataset_moments(moments))
    data = save_compact_moments(compact)
    assert len(data) < len(save_centred_moments(moments)) * 0.8
    assert_equal_bits(load_dataset_sums(data), compact.expanded())
    assert torch.equal(load_moments(data).cross_IJ, compact.expanded().pooled.cross_IJ)


def test_small_sums_and_rows_that_do_not_vary_are_kept_in_full() -> None:
    assert compact_moments(dataset_moments(moments_of(0)), RIDGES, in_full=10**6) is None
    same = [side[:1].expand(50, -1) for side in rows(0)]
    assert compact_moments(dataset_moments(pair_moments(*same)), RIDGES, in_full=0) is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"first_coarse": None}, "have no 'first_coarse'"),
        ({"cross": torch.zeros(2, 3, dtype=torch.int16)}, r"'cross' of shape \(2, 3\), expected"),
        (
            {"cross": torch.zeros(2, 3)},
            "'cross' of torch.float32 and shape .*, expected torch.int16",
        ),
        ({"second_rest": torch.zeros(7, dtype=torch.float64)}, "second side of several widths"),
        ({"first_scales": torch.ones(2, dtype=torch.float64)}, "'first_scales'"),
        (
            {"weight": torch.tensor(torch.inf, dtype=torch.float64)},
            "'weight' with values that are not",
        ),
    ],
)
def test_a_damaged_file_is_refused(damage: dict[str, Tensor | None], message: str) -> None:
    tensors = {**compacted(dataset_moments(moments_of(1))).tensors, **damage}
    kept = {f"compact/{name}": each for name, each in tensors.items() if each is not None}
    data = save_method_state(kept)
    for load in (load_dataset_sums, load_moments):
        with pytest.raises(InvalidVersion, match=message):
            load(data)


def test_a_truncated_file_is_refused() -> None:
    data = save_compact_moments(compacted(dataset_moments(moments_of(1))))
    with pytest.raises(InvalidVersion, match="cannot be read"):
        load_dataset_sums(data[: len(data) // 2])
