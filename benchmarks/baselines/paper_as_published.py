"""The dual-sided projection of arXiv 2503.14963 as its code computes it (Xiaohao-Liu/CMCL, 145fda6).

Shapes: N rows, E width of the embeddings, F width of the feature, I = F + 1 width of what a head reads (the
last column is the bias).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.baselines.paper import span_above
from workers.methods.method import (
    Batch,
    DatasetStatistics,
    Method,
    MethodState,
    TrainingContext,
    UpdateRule,
)
from workers.model.heads import ModalityHeads
from workers.model.pair import HeadInEigenCoordinates, PairInEigenCoordinates
from workers.nullspace.moments import PairMoments, SecondMoment

_ROWS, _DATASETS = "published/rows", "published/datasets"


@dataclass(frozen=True)
class PaperAsPublished(Method):
    """∇W ← ∇W − P_out ∇W P_in, then AdamW, with what is wrong in the published code:

    1. *The gradient is projected, and not the step.* AdamW rescales it entry by entry and rotates it out of
       the permitted subspace.
    2. *The bias is not projected*, nor part of the moments, nor decayed.
    3. *The decay is towards 0*: of W, and not of its change.
    4. *The threshold of P_out is 0.* No singular value of a mean moment in float32 is exactly 0, so P_out is
       the identity, and P_in alone decides: the projection is one-sided.
    5. *Statistics are of the stored positions 0 and 1 of a sample, whatever the pair.* `stored` has those of
       datasets whose pair has other positions (five of the eleven).
    6. *One counter for all modalities.* With n̄ rows before and n of this dataset, n' = n̄ + n, the running
       mean of both modalities of the pair is C ← (n̄ / n') C + Xᵀ X / n'. So the mean of a modality shrinks
       with the rows of datasets that it had no part in.
    7. *Moments of embeddings stay as they were under the heads that had just learned them*: K of the
       second modality gets W X_0ᵀ X_0 Wᵀ / n' of the first one's head, and the other way round.

    The norm of the gradient of both heads is clipped at `largest_norm` before the projection.

    `stored`: by number of the dataset (from 0), moments of the features at positions 0 and 1 of its stored
    samples, as heads read them (with the constant 1). The pair's own where it is missing.

    Deviations: AdamW's ε is the product's 1e-6 (published: 1e-8), and moments are float64 (float32). Loss,
    rate, batches and conditioning are the run's.
    """

    input_threshold: float = 0.1
    output_threshold: float = 0.0
    largest_norm: float = 1.0
    stored: Mapping[int, PairMoments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not min(self.input_threshold, self.output_threshold) >= 0:
            raise ValueError(
                f"input_threshold is {self.input_threshold} and output_threshold "
                f"{self.output_threshold}; permitted are 0 and more"
            )
        if not self.largest_norm > 0:
            raise ValueError(f"largest_norm is {self.largest_norm}; permitted is more than 0")

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        heads = [
            _PublishedHead(head, self._projectors(context.method_state, modality))
            for modality, head in zip(
                context.pair.modalities, (pair.first, pair.second), strict=True
            )
        ]
        return _PublishedRule(heads, self.largest_norm, context.recipe.weight_decay)

    def _projectors(self, state: MethodState, modality: str) -> tuple[Tensor, Tensor] | None:
        """P_out (E × E) and P_in (F × F); None before the first dataset."""
        if _name(modality, "outputs") not in state:
            return None
        outputs_EE, inputs_FF = (state[_name(modality, side)] for side in ("outputs", "inputs"))
        return (
            projector(outputs_EE, self.output_threshold),
            projector(inputs_FF, self.input_threshold),
        )

    def next_state(
        self, context: TrainingContext, trained: ModalityHeads, statistics: DatasetStatistics
    ) -> MethodState:
        state, names = dict(context.method_state), context.pair.modalities
        rows = int(state.get(_ROWS, torch.tensor(0)))
        number = int(state.get(_DATASETS, torch.tensor(0)))
        moments = self.stored.get(number, statistics.moments)
        total = rows + moments.count
        for (modality, partner), side in zip(
            (names, names[::-1]), (moments.first, moments.second), strict=True
        ):
            # Xᵀ X (F × F) of the position, and of its embeddings without the bias (E × E).
            features = SecondMoment(side.count, side.sum_II[:-1, :-1])
            embedded = features.through(trained.weights[modality][:, :-1])
            for name, sum_FF in (
                (_name(modality, "inputs"), features.sum_II),
                (_name(partner, "outputs"), embedded.sum_II),
            ):
                mean_FF = state.get(name, torch.zeros_like(sum_FF))
                state[name] = rows / total * mean_FF + sum_FF / total
        state[_ROWS], state[_DATASETS] = torch.tensor(total), torch.tensor(number + 1)
        return state


class _PublishedRule(UpdateRule):
    """Clip and project gradients before the optimizer's step, and decay the heads after it."""

    def __init__(
        self, heads: "Sequence[_PublishedHead]", largest_norm: float, weight_decay: float
    ) -> None:
        self._heads, self._largest_norm, self._weight_decay = heads, largest_norm, weight_decay

    def backward(self, batch: Batch) -> Tensor:
        loss = super().backward(batch)
        nn.utils.clip_grad_norm_([head.change_EI for head in self._heads], self._largest_norm)
        for head in self._heads:
            head.before_update()
        return loss

    def after_update(self, learning_rate: float) -> None:
        # AdamW multiplies a parameter by 1 − rate · decay in each update; W₀ must shrink by the same.
        for head in self._heads:
            head.after_update(learning_rate * self._weight_decay)


class _PublishedHead:
    """One head, and P_out and P_in of its gradient; None projects nothing.

    The head trains M in W = W₀ + M: the update spaces of this method are everything, in the original
    coordinates, so ∂L/∂M = ∂L/∂W.
    """

    def __init__(
        self, head: HeadInEigenCoordinates, projectors: tuple[Tensor, Tensor] | None
    ) -> None:
        self.change_EI: nn.Parameter = head.change_EI
        # E × F: the bias is the last of the I = F + 1 columns.
        self._start_EF = head.start_EI[:, :-1]
        self._projectors = projectors and tuple(each.to(head.start_EI) for each in projectors)
        self._bias_E = self.change_EI[:, -1].detach().clone()

    @torch.no_grad()
    def before_update(self) -> None:
        """∇W − P_out ∇W P_in, for all columns but the bias."""
        # The bias before the optimizer's step, which decays it along with everything else.
        self._bias_E.copy_(self.change_EI[:, -1])
        if self.change_EI.grad is not None and self._projectors is not None:
            outputs_EE, inputs_FF = self._projectors
            gradient_EF = self.change_EI.grad[:, :-1]
            gradient_EF -= outputs_EE @ gradient_EF @ inputs_FF

    @torch.no_grad()
    def after_update(self, decay: float) -> None:
        """Decay W₀ too, and undo the decay of the bias."""
        # The optimizer decayed the change, M ← (1 − d) M. W ← (1 − d) W needs −d W₀ in addition.
        self.change_EI[:, :-1] -= decay * self._start_EF
        # The bias was decayed with the rest: give back what the decay took of its value before the step.
        self.change_EI[:, -1] += decay * self._bias_E


def projector(mean_FF: Tensor, threshold: float) -> Tensor:
    """U Uᵀ of the eigenvectors U of a mean moment with eigenvalues above an absolute threshold (F × F).

    The identity at 0, unless the moment is 0: rounding in float32 leaves no eigenvalue that is 0.
    """
    if threshold == 0 and bool(mean_FF.any()):
        return torch.eye(len(mean_FF), dtype=mean_FF.dtype)
    span_FK = span_above(SecondMoment(1, mean_FF), threshold)
    return span_FK @ span_FK.mT


def _name(modality: str, side: str) -> str:
    return f"published/{modality}/{side}"
