"""A bound on drift is enforced with the least change of what was learned."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.nullspace.certificate import PairScores, PairWeights
from workers.nullspace.mask import UpdateSpace, product_mask
from workers.nullspace.moments import PairMoments, pair_moments
from workers.nullspace.shrink import Changes, shrink_to_bound
from workers.nullspace.subspace import eigenbasis

DOUBLE = torch.float64
KEPT = 0.8
Spaces = tuple[UpdateSpace, UpdateSpace]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


class Pair:
    """Two heads that have learned a dataset, and changes of both along their free entries."""

    def __init__(self, seed: int, rank: int = 9, size: float = 0.3) -> None:
        rows = (random(seed, 40, rank) @ random(seed + 1, rank, 9), random(seed + 2, 40, 7) + 0.5)
        self.moments: PairMoments = pair_moments(*rows)
        self.parent = PairWeights(random(seed + 3, 5, 9), random(seed + 4, 5, 7))
        sides = (
            (self.moments.second.through(self.parent.second_EJ), self.moments.first),
            (self.moments.first.through(self.parent.first_EI), self.moments.second),
        )
        first, second = (
            UpdateSpace(outputs, inputs, product_mask(outputs, inputs, KEPT))
            for outputs, inputs in ((eigenbasis(out), eigenbasis(own)) for out, own in sides)
        )
        self.spaces: Spaces = (first, second)
        self.changes: Changes = (
            size * random(seed + 5, 5, 9) * first.free_EI,
            size * random(seed + 6, 5, 7) * second.free_EI,
        )

    def heads(self, changes: Changes) -> PairWeights:
        first, second = (
            weight + space.outputs.vectors_II @ change @ space.inputs.vectors_II.mT
            for weight, space, change in zip(
                (self.parent.first_EI, self.parent.second_EJ), self.spaces, changes, strict=True
            )
        )
        return PairWeights(first, second)

    def drift(self, changes: Changes) -> float:
        return PairScores(self.moments).drift(self.parent, self.heads(changes))


def kept(changes: Changes) -> float:
    return float(sum(change.square().sum() for change in changes)) ** 0.5


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.01, 1.2), st.sampled_from([0.01, 0.3, 3.0]))
def test_shrunk_changes_never_drift_beyond_the_bound(
    seed: int, fraction: float, size: float
) -> None:
    pair = Pair(seed, size=size)
    bound = fraction * pair.drift(pair.changes)
    changes, shrunk = shrink_to_bound(pair.changes, pair.spaces, pair.drift, bound)
    assert shrunk.drift_before == pair.drift(pair.changes)
    assert shrunk.drift_after == pair.drift(changes) <= bound


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
def test_shrinking_uses_up_the_bound_it_was_given(fraction: float) -> None:
    pair = Pair(1)
    bound = fraction * pair.drift(pair.changes)
    _, shrunk = shrink_to_bound(pair.changes, pair.spaces, pair.drift, bound)
    assert shrunk.drift_after > 0.98 * bound


def test_changes_within_the_bound_are_returned_untouched() -> None:
    pair = Pair(2)
    bound = pair.drift(pair.changes)
    changes, shrunk = shrink_to_bound(pair.changes, pair.spaces, pair.drift, bound)
    assert changes is pair.changes
    assert (shrunk.penalty, shrunk.scale) == (0.0, 1.0)
    assert shrunk.drift_before == shrunk.drift_after == bound


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0))
def test_blocked_entries_stay_exactly_zero(seed: int, fraction: float) -> None:
    pair = Pair(seed)
    bound = fraction * pair.drift(pair.changes)
    changes, _ = shrink_to_bound(pair.changes, pair.spaces, pair.drift, bound)
    for change, space in zip(changes, pair.spaces, strict=True):
        assert (change[~space.free_EI] == 0).all()


def test_entries_that_offend_most_are_given_up_first() -> None:
    """At the same bound more of the change is left than by scaling all of it alike."""
    pair = Pair(3, rank=4)
    bound = 0.1 * pair.drift(pair.changes)
    changes, shrunk = shrink_to_bound(pair.changes, pair.spaces, pair.drift, bound)
    assert shrunk.penalty > 0
    assert shrunk.scale == 1.0
    assert kept(changes) > 2 * 0.1 * kept(pair.changes)


def test_drift_without_energy_is_bounded_by_scaling() -> None:
    """A measure unrelated to the energies: only t can meet the bound."""
    pair = Pair(4, rank=4)

    def size_of_harmless(changes: Changes) -> float:
        return float(changes[0][:, 4:].abs().max())

    bound = 0.3 * size_of_harmless(pair.changes)
    changes, shrunk = shrink_to_bound(pair.changes, pair.spaces, size_of_harmless, bound)
    assert shrunk.scale == pytest.approx(0.3, abs=1e-3)
    assert size_of_harmless(changes) == shrunk.drift_after <= bound


@pytest.mark.parametrize("drift_of_parent", [0.7, float("inf"), float("nan")])
def test_a_parent_beyond_the_bound_is_returned_itself(drift_of_parent: float) -> None:
    pair = Pair(5)

    def always(changes: Changes) -> float:
        return drift_of_parent

    changes, shrunk = shrink_to_bound(pair.changes, pair.spaces, always, 0.5)
    assert all((change == 0).all() for change in changes)
    assert shrunk.scale == 0.0


def test_changes_that_are_not_numbers_give_the_parent() -> None:
    pair = Pair(6)
    diverged = (pair.changes[0] * float("nan"), pair.changes[1])
    changes, shrunk = shrink_to_bound(diverged, pair.spaces, pair.drift, 0.5)
    assert all((change == 0).all() for change in changes)
    assert shrunk.drift_after == 0.0


def test_drift_is_evaluated_at_most_sixteen_times() -> None:
    pair = Pair(8)
    asked: list[float] = []

    def counted(changes: Changes) -> float:
        asked.append(pair.drift(changes))
        return asked[-1]

    for bound in (0.0, 0.01 * pair.drift(pair.changes), 0.9 * pair.drift(pair.changes)):
        asked.clear()
        shrink_to_bound(pair.changes, pair.spaces, counted, bound)
        assert 0 < len(asked) <= 16


@pytest.mark.parametrize("bound", [-0.1, float("nan")])
def test_a_bound_that_is_no_bound_is_refused(bound: float) -> None:
    pair = Pair(9)
    with pytest.raises(ValueError, match=r"bound on drift is .*; permitted are 0 and above"):
        shrink_to_bound(pair.changes, pair.spaces, pair.drift, bound)
