"""Moment anchor: penalise the forgetting certificate of every earlier pair, without old data.

Shapes: E width of the embeddings, I width of what a head reads.
"""

from dataclasses import dataclass

from torch import Tensor

from benchmarks.baselines.sampled_replay import datasets_of, touching
from cmcl.contract.modality import ModalityPair
from workers.methods.method import Batch, Method, TrainingContext, UpdateRule
from workers.model.pair import HeadInEigenCoordinates, PairInEigenCoordinates
from workers.nullspace.moments import PairMoments, SecondMoment


@dataclass(frozen=True)
class Anchor(Method):
    """L + w Σ_s tr(C_a ΔG_s C_b ΔG_sᵀ) / tr(C_a G₀ C_b G₀ᵀ), the squared relative drifts.

    For each earlier pair (a, b) that shares a head with the new one, ΔG is the change of G = W_aᵀ
    W_b since the parent version, and C are the mean moments of the pair's rows. Datasets of the
    same pair are pooled and weighted by their number, so the cost of an update does not grow with
    it. The penalty is the square of the certificate's drift (workers/nullspace/certificate.py),
    relative to the parent instead of the version that learned the dataset.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight is {self.weight}; permitted are 0 and more")

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        return _AnchorRule(self.weight, _anchors(context, pair))


class _AnchorRule(UpdateRule):
    def __init__(self, weight: float, anchors: "list[_OneMoves | _BothMove]") -> None:
        self._weight, self._anchors = weight, anchors

    def backward(self, batch: Batch) -> Tensor:
        loss = batch.loss()
        penalty = sum((anchor.squared_drift() for anchor in self._anchors), loss.new_zeros(()))
        (loss + self._weight * penalty).backward()  # type: ignore[no-untyped-call]
        return loss.detach()


@dataclass(frozen=True)
class _Side:
    """One side of an earlier pair: its mean moment C, and its head W at the start of training.

    The penalty needs only two E × E products of the head's change Δ: Δ C Wᵀ and Δ C Δᵀ.
    """

    mean_II: Tensor
    mean_then_IE: Tensor  # C Wᵀ
    then_EE: Tensor  # W C Wᵀ
    head: HeadInEigenCoordinates

    @property
    def mixed_EE(self) -> Tensor:
        """Δ C Wᵀ."""
        return self.head.change_EI @ self.mean_then_IE

    @property
    def moved_EE(self) -> Tensor:
        """Δ C Δᵀ."""
        return self.head.change_EI @ self.mean_II @ self.head.change_EI.mT


@dataclass(frozen=True)
class _OneMoves:
    """An earlier pair with one head in the update: ΔG = Δ_aᵀ W_b."""

    moves: _Side
    still_EE: Tensor  # W_b C_b W_bᵀ, divided by tr(C_a G₀ C_b G₀ᵀ)

    def squared_drift(self) -> Tensor:
        return (self.moves.moved_EE * self.still_EE).sum()


@dataclass(frozen=True)
class _BothMove:
    """A repeated pair: ΔG = Δ_aᵀ (W_b + Δ_b) + W_aᵀ Δ_b, squared term by term."""

    first: _Side
    second: _Side
    size: float  # tr(C_a G₀ C_b G₀ᵀ), divided by the number of pooled datasets

    def squared_drift(self) -> Tensor:
        first_mixed_EE, first_moved_EE = self.first.mixed_EE, self.first.moved_EE
        mixed_EE, moved_EE = self.second.mixed_EE, self.second.moved_EE
        now_EE = self.second.then_EE + mixed_EE + mixed_EE.mT + moved_EE
        square = (
            (first_moved_EE * now_EE).sum()
            + 2 * (first_mixed_EE * (mixed_EE + moved_EE).mT).sum()
            + (self.first.then_EE * moved_EE).sum()
        )
        return square / self.size


def _anchors(context: TrainingContext, pair: PairInEigenCoordinates) -> list[_OneMoves | _BothMove]:
    """Return one term for each earlier pair that shares a head with this one and has nonzero
    scores."""
    found = [
        _anchor(context, pair, known, moments)
        for known, moments in touching(context.memory, context.pair)
    ]
    return [anchor for anchor in found if anchor]


def _anchor(
    context: TrainingContext,
    pair: PairInEigenCoordinates,
    known: ModalityPair,
    moments: PairMoments,
) -> _OneMoves | _BothMove | None:
    """Return the term of one pair. `known.first` is trained; for a repeated pair, `known.second` as
    well.

        Return None if all scores of the pair are zero, because relative drift is then undefined.
    """
    heads = dict(zip(context.pair.modalities, (pair.first, pair.second), strict=True))
    first_EI, second_EJ = (context.heads.weights[name] for name in known.modalities)
    first_EE = moments.first.through(first_EI).mean_II
    second_EE = moments.second.through(second_EJ).mean_II
    size = float((first_EE * second_EE).sum()) / max(datasets_of(context.memory, known), 1)
    if size <= 0:
        return None
    first = _side(moments.first, first_EI, heads[known.first])
    if known.second in heads:
        second = _side(moments.second, second_EJ, heads[known.second])
        return _BothMove(first, second, size)
    return _OneMoves(first, (second_EE / size).to(first.then_EE))


def _side(moment: SecondMoment, weight_EI: Tensor, head: HeadInEigenCoordinates) -> _Side:
    """Form the products in float64, then convert to the head's precision and device."""
    mean_II, weight_EI = moment.mean_II, weight_EI.to(moment.sum_II)
    mean_then_IE = mean_II @ weight_EI.mT
    start_EI = head.start_EI
    return _Side(
        mean_II.to(start_EI),
        mean_then_IE.to(start_EI),
        (weight_EI @ mean_then_IE).to(start_EI),
        head,
    )
