"""A repeated pair: both heads move, and the old scores stay.

Shapes: B rows, E width of the embeddings, I and J widths of the two sides' features.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.nullspace.references import free_energy, in_double, rectangular_mask
from workers.nullspace.certificate import PairScores, PairWeights
from workers.nullspace.mask import (
    MaskRule,
    UpdateSpace,
    disjoint_shares,
    everything_free,
    product_mask,
)
from workers.nullspace.moments import PairMoments, pair_moments
from workers.nullspace.subspace import eigenbasis

DOUBLE = torch.float64
WIDTH, FEATURES, OLD_RANK, CAUSES = 24, 40, 6, 8
UPDATES = 500
Rows = tuple[Tensor, Tensor]
Spaces = tuple[UpdateSpace, UpdateSpace]
Deal = Callable[[PairMoments, PairWeights, float], Spaces]
BOTH_RULES = pytest.mark.parametrize("rule", [rectangular_mask, product_mask])


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def first_order(
    moments: PairMoments, weights: PairWeights, kept: float, rule: MaskRule = product_mask
) -> Spaces:
    """The spaces of both heads as if only one of them were to move."""
    sides = (
        (moments.second.through(weights.second_EJ), moments.first),
        (moments.first.through(weights.first_EI), moments.second),
    )
    first, second = (
        UpdateSpace(outputs, inputs, rule(outputs, inputs, kept))
        for outputs, inputs in ((eigenbasis(out), eigenbasis(own)) for out, own in sides)
    )
    return first, second


def shared(
    moments: PairMoments, weights: PairWeights, kept: float, rule: MaskRule = product_mask
) -> Spaces:
    return disjoint_shares(*first_order(moments, weights, kept, rule), kept, rule)


def nothing_kept(moments: PairMoments, weights: PairWeights, kept: float) -> Spaces:
    return everything_free(*weights.first_EI.shape), everything_free(*weights.second_EJ.shape)


def rows_of(seed: int, causes: int, noise: float, count: int = 512) -> Rows:
    """Pairs with common causes; without noise they have exactly that rank."""
    scale = (CAUSES * FEATURES) ** 0.5
    causes_BK = random(seed, count, causes)
    return (
        (causes_BK @ random(6, CAUSES, FEATURES)[:causes]) / scale
        + noise * random(seed + 1, count, FEATURES) / FEATURES**0.5,
        (causes_BK @ random(8, CAUSES, FEATURES)[:causes]) / scale
        + noise * random(seed + 2, count, FEATURES) / FEATURES**0.5,
    )


def untrained_heads() -> PairWeights:
    return PairWeights(
        torch.linalg.qr(random(10, FEATURES, WIDTH)).Q.mT.contiguous(),
        torch.linalg.qr(random(11, FEATURES, WIDTH)).Q.mT.contiguous(),
    )


def info_nce(first_BE: Tensor, second_BE: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize
    scores_BB = unit(first_BE, dim=1) @ unit(second_BE, dim=1).mT / 0.07
    target_B = torch.arange(len(scores_BB))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(scores_BB, target_B) + cross_entropy(scores_BB.mT, target_B)) / 2


def batches(rows: Rows, size: int = 64) -> list[Rows]:
    return list(zip(rows[0].split(size), rows[1].split(size), strict=True))


def loss_of(rows: Rows, heads: PairWeights) -> float:
    """Mean loss of all batches."""
    losses = [
        info_nce(first @ heads.first_EI.mT, second @ heads.second_EJ.mT)
        for first, second in batches(rows)
    ]
    return float(torch.stack(losses).mean())


def moved(weight_EI: Tensor, change_EI: Tensor, space: UpdateSpace) -> Tensor:
    outputs_EE = space.outputs.vectors_II.to(weight_EI)
    return weight_EI + outputs_EE @ change_EI @ space.inputs.vectors_II.to(weight_EI).mT


def train_round(rows: Rows, heads: PairWeights, spaces: Spaces, updates: int) -> PairWeights:
    """AdamW on the changes of both heads; blocked gradients are zeroed, decay acts on changes."""
    starts = (heads.first_EI, heads.second_EJ)
    changes = [torch.zeros_like(weight, requires_grad=True) for weight in starts]
    optimizer = torch.optim.AdamW(changes, lr=3e-3, weight_decay=1e-3)
    data = batches(rows)
    for update in range(updates):
        optimizer.zero_grad()
        first, second = map(moved, starts, changes, spaces)
        first_BI, second_BJ = data[update % len(data)]
        info_nce(first_BI @ first.mT, second_BJ @ second.mT).backward()
        for change_EI, space in zip(changes, spaces, strict=True):
            assert change_EI.grad is not None
            change_EI.grad *= space.free_EI
        optimizer.step()
    first, second = map(moved, starts, (change.detach() for change in changes), spaces)
    return PairWeights(first, second)


def train(
    rows: Rows, heads: PairWeights, old: PairMoments, deal: Deal, rounds: int = 1
) -> PairWeights:
    """500 updates, in rounds; each assigns the spaces again from the current heads."""
    for _ in range(rounds):
        heads = train_round(rows, heads, deal(old, in_double(heads), 1.0), UPDATES // rounds)
    return heads


@pytest.fixture(scope="module")
def old_rows() -> Rows:
    return rows_of(100, OLD_RANK, noise=0.0)


@pytest.fixture(scope="module")
def new_rows() -> Rows:
    return rows_of(200, CAUSES, noise=0.5)


@pytest.fixture(scope="module")
def learned(old_rows: Rows) -> PairWeights:
    """Heads that have learned the old rows, of exactly rank six."""
    return train(old_rows, untrained_heads(), pair_moments(*old_rows), nothing_kept)


def brute_force_drift(rows: Rows, then: PairWeights, now: PairWeights) -> float:
    """Over all row combinations."""

    def scores(heads: PairWeights) -> Tensor:
        heads = in_double(heads)
        return (rows[0] @ heads.first_EI.mT) @ (rows[1] @ heads.second_EJ.mT).mT

    change = (scores(now) - scores(then)).square().mean()
    return float((change / scores(then).square().mean()).sqrt())


def test_a_pair_that_comes_again_keeps_its_scores_and_learns(
    old_rows: Rows, new_rows: Rows, learned: PairWeights
) -> None:
    """Shares dealt five times: old scores stay to rounding, at no more than 5 % of the new loss."""
    old = pair_moments(*old_rows)
    ours = train(new_rows, learned, old, shared, rounds=5)
    assert brute_force_drift(old_rows, learned, ours) < 1e-6
    assert PairScores(old).drift(learned, ours) < 1e-6
    for rounds in (1, 5):
        plain = train(new_rows, learned, old, first_order, rounds)
        assert brute_force_drift(old_rows, learned, plain) > 1e-3
        assert loss_of(new_rows, ours) < 1.05 * loss_of(new_rows, plain)


def test_a_pair_that_comes_again_keeps_its_scores_in_float32(
    old_rows: Rows, new_rows: Rows, learned: PairWeights
) -> None:
    old = pair_moments(*old_rows)
    start = PairWeights(learned.first_EI.float(), learned.second_EJ.float())
    rows = (new_rows[0].float(), new_rows[1].float())
    now = train(rows, start, old, shared, rounds=5)
    assert now.first_EI.dtype == torch.float32
    assert brute_force_drift(old_rows, start, now) < 1e-3
    assert PairScores(old).drift(start, now) < 1e-3
    assert loss_of(rows, now) < 0.2 * loss_of(rows, start)


def test_a_pair_that_comes_again_needs_no_second_deal_to_be_exact(
    old_rows: Rows, new_rows: Rows, learned: PairWeights
) -> None:
    """One deal for all 500 updates holds the scores as well; it costs more of the new loss."""
    old = pair_moments(*old_rows)
    ours = train(new_rows, learned, old, shared)
    plain = train(new_rows, learned, old, first_order)
    assert brute_force_drift(old_rows, learned, ours) < 1e-6
    assert loss_of(new_rows, ours) < 1.1 * loss_of(new_rows, plain)


def random_change(seed: int, space: UpdateSpace) -> Tensor:
    """A change of a head (E × I) that fills its free entries."""
    change_EI = random(seed, *space.free_EI.shape) * space.free_EI
    return space.outputs.vectors_II @ change_EI @ space.inputs.vectors_II.mT


@BOTH_RULES
@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
def test_free_changes_send_old_rows_into_orthogonal_spaces(
    rule: MaskRule, seed: int, first_rank: int, second_rank: int
) -> None:
    first_BI = random(seed, 30, first_rank) @ random(seed + 1, first_rank, 14)
    second_BJ = random(seed + 2, 30, second_rank) @ random(seed + 3, second_rank, 11)
    heads = PairWeights(random(seed + 4, 10, 14), random(seed + 5, 10, 11))
    spaces = shared(pair_moments(first_BI, second_BJ), heads, 1.0, rule)
    first_BE = first_BI @ random_change(seed + 6, spaces[0]).mT
    second_BE = second_BJ @ random_change(seed + 7, spaces[1]).mT
    assert (first_BE @ second_BE.mT).abs().max() < 1e-9
    assert (first_BE @ (second_BJ @ heads.second_EJ.mT).mT).abs().max() < 1e-9
    assert (second_BE @ (first_BI @ heads.first_EI.mT).mT).abs().max() < 1e-9


def old_freedom(space: UpdateSpace, rank: int) -> int:
    """Number of outputs along which the leading inputs may still move."""
    return int(space.free_EI[:, :rank].any(dim=1).sum())


def test_shares_halve_what_old_inputs_may_do_and_nothing_else(
    old_rows: Rows, learned: PairWeights
) -> None:
    before = first_order(pair_moments(*old_rows), learned, 1.0)
    after = shared(pair_moments(*old_rows), learned, 1.0)
    assert [old_freedom(space, OLD_RANK) for space in before] == [WIDTH - OLD_RANK] * 2
    assert [old_freedom(space, OLD_RANK) for space in after] == [(WIDTH - OLD_RANK) // 2] * 2
    assert all(space.free_EI[:, OLD_RANK:].all() for space in after)


@pytest.mark.parametrize(("rule", "sides"), [(rectangular_mask, 2), (product_mask, 1)])
@pytest.mark.parametrize("kept", [0.5, 0.8, 0.95, 1.0])
def test_new_output_bases_are_orthonormal_and_keep_the_trace(
    rule: MaskRule, sides: int, kept: float
) -> None:
    """And hold the rule's bound: the rectangle keeps its share on each of two sides."""
    moments = pair_moments(*rows_of(300, CAUSES, noise=0.3))
    before = first_order(moments, untrained_heads(), kept, rule)
    for old, new in zip(before, shared(moments, untrained_heads(), kept, rule), strict=True):
        vectors_EE = new.outputs.vectors_II
        torch.testing.assert_close(vectors_EE.mT @ vectors_EE, torch.eye(WIDTH, dtype=DOUBLE))
        torch.testing.assert_close(new.outputs.values_I.sum(), old.outputs.values_I.sum())
        assert free_energy(new) <= 1 - kept**sides + 1e-9


def test_kept_energy_of_full_spectra_leaves_both_heads_a_share() -> None:
    """Full rank everywhere: 0.8 of the energy is in a few directions, and only those are dealt."""
    moments = pair_moments(*rows_of(400, CAUSES, noise=0.3))
    spaces = shared(moments, untrained_heads(), 0.8)
    for space in spaces:
        leading = space.inputs.rank_at(0.8)
        assert 0 < leading < FEATURES // 2
        assert 0.2 * WIDTH < old_freedom(space, leading) < 0.6 * WIDTH
        assert space.free_EI[:, leading:].double().mean() > 0.8


def test_outputs_that_are_all_protected_block_old_inputs_altogether() -> None:
    rows = rows_of(600, CAUSES, noise=0.0)
    heads = PairWeights(random(601, 4, FEATURES), random(602, 4, FEATURES))
    for space in shared(pair_moments(*rows), heads, 1.0):
        assert not space.free_EI[:, :CAUSES].any()
        assert space.free_EI[:, CAUSES:].all()


@pytest.mark.parametrize(("first_rank", "expected"), [(10, (0, 7)), (8, (1, 6)), (3, (4, 3))])
def test_outputs_that_one_side_may_not_move_are_the_others(
    first_rank: int, expected: tuple[int, int]
) -> None:
    """Ten outputs; the first side's rows protect `first_rank` of them for the second."""
    rows = (
        random(610, 30, 3) @ random(611, 3, 14),
        random(612, 30, first_rank) @ random(613, first_rank, 12),
    )
    heads = PairWeights(random(614, 10, 14), random(615, 10, 12))
    first, second = shared(pair_moments(*rows), heads, 1.0)
    assert (old_freedom(first, 3), old_freedom(second, first_rank)) == expected


def test_shares_do_not_depend_on_rounding_of_the_moments(old_rows: Rows) -> None:
    """The space of a head's effect on old inputs is the same after noise in the sixteenth digit."""
    noisy = (old_rows[0] * (1 + 1e-15 * random(700, *old_rows[0].shape)), old_rows[1])
    own = []
    for rows in (old_rows, noisy):
        space = shared(pair_moments(*rows), untrained_heads(), 1.0)[0]
        own_EK = space.outputs.vectors_II[:, space.free_EI[:, 0]]
        own.append(own_EK @ own_EK.mT)
    torch.testing.assert_close(own[0], own[1], atol=1e-9, rtol=0)
