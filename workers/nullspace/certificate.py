"""The forgetting certificate: how far all old scores moved, from moments alone, without old data.

Shapes: E width of the embeddings, I and J widths of the two sides' features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.nullspace.moments import PairMoments, SecondMoment


@dataclass(frozen=True)
class PairWeights:
    """The heads of the two sides of a pair at one moment in time."""

    first_EI: Tensor
    second_EJ: Tensor

    def double(self) -> "PairWeights":
        return PairWeights(self.first_EI.double(), self.second_EJ.double())


def relative_drift(moments: PairMoments, then: PairWeights, now: PairWeights) -> float:
    """Root mean square change of the scores of all row combinations, relative to their size then.

    With G = W_uᵀ W_v and mean moments C: √( tr(C_u ΔG C_v ΔGᵀ) / tr(C_u G₀ C_v G₀ᵀ) ).
    ΔG = ΔW_uᵀ W_v + W₀_uᵀ ΔW_v is kept as two terms, whose squares and product are traces of E × E
    matrices: cheap, exactly zero when nothing moved, and without the cancellation of subtracting
    two large products. Heads that moved but no score reads as up to about 1e-8, the root of what
    float64 rounds.
    Infinite if scores that were all zero have changed.
    """
    first = _pushed(moments.first, then.first_EI, now.first_EI)
    second = _pushed(moments.second, then.second_EJ, now.second_EJ)
    size = float((first.then_EE * second.then_EE).sum())
    change = float(
        (first.moved_EE * second.now_EE).sum()
        + 2 * (first.mixed_EE * second.now_mixed_EE.mT).sum()
        + (first.then_EE * second.moved_EE).sum()
    )
    if size <= 0:
        return 0.0 if change <= 0 else float("inf")
    return float((max(change, 0.0) / size) ** 0.5)


def relative_norm_change(moment: SecondMoment, then_EI: Tensor, now_EI: Tensor) -> float:
    """Relative change of the root mean square norm of a modality's embeddings on a dataset.

    √( tr(W C Wᵀ) now / then ) − 1: 0 when norms stay, −1 when all embeddings have become zero,
    infinite if embeddings that were all zero have become something.
    """
    before, after = _square_norm(moment, then_EI), _square_norm(moment, now_EI)
    if before <= 0:
        return 0.0 if after <= 0 else float("inf")
    return float((max(after, 0.0) / before) ** 0.5) - 1.0


@dataclass(frozen=True)
class _Pushed:
    """A side's mean moment between its head then (W) and its change (Δ), each E × E, float64."""

    then_EE: Tensor  # W C Wᵀ
    mixed_EE: Tensor  # Δ C Wᵀ
    moved_EE: Tensor  # Δ C Δᵀ

    @property
    def now_mixed_EE(self) -> Tensor:
        """Δ C (W + Δ)ᵀ."""
        return self.mixed_EE + self.moved_EE

    @property
    def now_EE(self) -> Tensor:
        """(W + Δ) C (W + Δ)ᵀ."""
        return self.then_EE + self.mixed_EE + self.mixed_EE.mT + self.moved_EE


def _pushed(moment: SecondMoment, then_EI: Tensor, now_EI: Tensor) -> _Pushed:
    """All a side contributes, with one product with the moment per head that is not zero."""
    mean_II = moment.mean_II
    then_EI, now_EI = then_EI.to(mean_II), now_EI.to(mean_II)
    change_EI = now_EI - then_EI
    then_EE = then_EI @ mean_II @ then_EI.mT
    if not change_EI.any():
        still_EE = torch.zeros_like(then_EE)
        return _Pushed(then_EE, still_EE, still_EE)
    change_mean_EI = change_EI @ mean_II
    return _Pushed(then_EE, change_mean_EI @ then_EI.mT, change_mean_EI @ change_EI.mT)


def _square_norm(moment: SecondMoment, weight_EI: Tensor) -> float:
    """Mean of |W x|² over the rows."""
    weight_EI = weight_EI.to(moment.sum_II)
    return float(((weight_EI @ moment.mean_II) * weight_EI).sum())
