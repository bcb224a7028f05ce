"""A guaranteed bound: shrink a trained change until old scores have moved no more than permitted.

Shapes: E width of the embeddings, I width of a side's features.

First the entries that cause drift: M_ij / (1 + μ r_i s_j), equation (8), with r_i s_j relative to
the largest so that μ has no scale. It is the ridge solution: the M' that minimises
|M' − M|² + μ Σ r_i s_j M'_ij². What is left when those are gone (entries without energy, and the
second-order term of two moving heads) can only be scaled as a whole: t M, with t in [0, 1].
Drift falls along both, so both are found by bisection.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from workers.nullspace.mask import UpdateSpace

T = TypeVar("T")
Changes = tuple[Tensor, Tensor]
"""M of the two heads of a pair, each E × I in its own eigen-coordinates."""

# Decades of μ. At the least no entry shrinks by more than a thousandth. At the most every entry is
# erased whose energy is more than rounding.
_LEAST_DECADES, _MOST_DECADES = -3.0, 12.0
# Bisections: μ within 0.4 % (15 decades / 2¹³), t within 1/8192.
_HALVINGS = 13


@dataclass(frozen=True)
class Shrunk:
    """What enforcing a bound did: `penalty` μ, `scale` t, and the largest drift before and after.

    μ = 0, t = 1: unchanged. t = 0: the heads are the parent's. Only then may `drift_after` exceed the
    bound, because the parent itself does.
    """

    penalty: float
    scale: float
    drift_before: float
    drift_after: float

    def __post_init__(self) -> None:
        assert self.penalty >= 0
        assert 0 <= self.scale <= 1


def shrink_to_bound(
    changes: Changes,
    spaces: tuple[UpdateSpace, UpdateSpace],
    drift_of: Callable[[Changes], float],
    bound: float,
) -> tuple[Changes, Shrunk]:
    """Return the changes, shrunk no more than `drift_of(changes)` ≤ `bound` needs, and how.

    `drift_of` gives the largest relative drift for a pair of changes. It is called at most 16
    times. The result is always one whose drift was measured. NaN counts as outside of the bound.
    Raises ValueError if `bound` is negative or NaN.
    """
    _check(bound)
    before = drift_of(changes)
    # `<=` is false for NaN, here and below.
    if before <= bound:
        return changes, Shrunk(0.0, 1.0, before, before)
    # r_i s_j of both heads: how much each entry of M contributes to drift, by equation (4).
    energies = (
        _relative_energy(spaces[0], changes[0]),
        _relative_energy(spaces[1], changes[1]),
    )

    def penalised(decades: float) -> Changes:
        return _penalised(changes, energies, 10.0**decades)

    # Step 1: the penalty (8), which takes most from the entries that cause most drift.
    # If the largest μ is enough, the least μ that is lies between; else the rest must be scaled.
    most = drift_of(penalised(_MOST_DECADES))
    if most <= bound:
        # In decades, so that small and large μ are found with the same relative precision.
        search = _Search(penalised, drift_of, bound)
        decades, after = search.between(_MOST_DECADES, _LEAST_DECADES, most)
        return penalised(decades), Shrunk(10.0**decades, 1.0, before, after)
    # Step 2: scale what the largest μ has left. Everything that μ could remove is gone by then.
    return _scaled_to_bound(penalised(_MOST_DECADES), drift_of, bound, before)


def scale_to_bound(drift_of: Callable[[float], float], bound: float) -> Shrunk:
    """The largest share of a step, from 0 to 1, whose drift is at most `bound`.

    `drift_of` gives the largest relative drift after a share of the step; NaN counts as outside of the
    bound. The result is always one whose drift was measured. Raises ValueError if `bound` is negative
    or NaN.
    """
    _check(bound)
    before = drift_of(1.0)
    if before <= bound:
        return Shrunk(0.0, 1.0, before, before)
    least = drift_of(0.0)
    if not least <= bound:
        return Shrunk(0.0, 0.0, before, least)
    scale, after = _Search(lambda scale: scale, drift_of, bound).between(0.0, 1.0, least)
    return Shrunk(0.0, scale, before, after)


def _check(bound: float) -> None:
    if not bound >= 0:
        raise ValueError(f"bound on drift is {bound}; permitted are 0 and above")


def _scaled_to_bound(
    changes: Changes, drift_of: Callable[[Changes], float], bound: float, before: float
) -> tuple[Changes, Shrunk]:
    """What the largest penalty left, scaled as a whole by the largest t that keeps the bound."""

    # W₀ + t V M Uᵀ: a straight line from the parent's heads to the trained ones.
    def scaled(scale: float) -> Changes:
        return changes[0] * scale, changes[1] * scale

    # t = 0 is the parent. If that is outside of the bound already, nothing can be done about it.
    still = (torch.zeros_like(changes[0]), torch.zeros_like(changes[1]))
    least = drift_of(still)
    if not least <= bound:
        return still, Shrunk(10.0**_MOST_DECADES, 0.0, before, least)
    scale, after = _Search(scaled, drift_of, bound).between(0.0, 1.0, least)
    # The bracket may end at 0: no positive t was measured to be inside.
    if scale == 0:
        return still, Shrunk(10.0**_MOST_DECADES, 0.0, before, least)
    return scaled(scale), Shrunk(10.0**_MOST_DECADES, scale, before, after)


@dataclass(frozen=True)
class _Search(Generic[T]):
    """Bisection for the last candidate inside of the bound."""

    candidate: Callable[[float], T]
    drift_of: Callable[[T], float]
    bound: float

    def between(self, inside: float, outside: float, drift: float) -> tuple[float, float]:
        """Return the inside end of the final bracket and its drift (`drift` at the start)."""
        for _ in range(_HALVINGS):
            # Invariant: `inside` meets the bound, `outside` does not, or was never measured.
            middle = (inside + outside) / 2
            here = self.drift_of(self.candidate(middle))
            # Only measured candidates become the inside end, so the result needs no monotony.
            if here <= self.bound:
                inside, drift = middle, here
            else:
                outside = middle
        assert drift <= self.bound
        return inside, drift


def _penalised(changes: Changes, energies: tuple[Tensor, Tensor], penalty: float) -> Changes:
    # (8) entry by entry: the derivative of (m − M)² + μ e m² is 0 at m = M / (1 + μ e). Entries without
    # energy (e = 0) keep their value at any μ.
    first, second = (
        change_EI / (1 + penalty * energy_EI)
        for change_EI, energy_EI in zip(changes, energies, strict=True)
    )
    return first, second


def _relative_energy(space: UpdateSpace, like_EI: Tensor) -> Tensor:
    """r_i s_j divided by the largest, 0 to 1; zeros if no earlier score depends on the head."""
    # r_i s_j are sums over rows: dividing by the largest makes μ independent of their number.
    energy_EI = space.energy_EI.to(like_EI)
    largest = float(energy_EI.max())
    return energy_EI / largest if largest > 0 else energy_EI
