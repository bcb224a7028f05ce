"""The peers of the step benchmark: plain training, and the published order (arXiv 2503.14963).

Both are as fast as plain PyTorch permits: one matrix product per head forward and one backward,
scores of both directions at once, fused AdamW. Shapes: B rows of a batch, N of the dataset, E width
of the embeddings, I and J widths of the two sides, K rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cmcl.contract.model import TrainingSpec
from workers.methods.method import Recipe
from workers.model.heads import PairedRows
from workers.model.loss import symmetric_info_nce, unit
from workers.nullspace.moments import SecondMoment
from workers.train.loop import EPSILON

# lambda_min of the published code: an absolute threshold on the mean moments of inputs and outputs.
INPUT_THRESHOLD, OUTPUT_THRESHOLD = 0.1, 0.0


class PlainPair:
    """Two heads under InfoNCE and AdamW, and nothing else."""

    def __init__(
        self,
        weights: tuple[Tensor, Tensor],
        rows: PairedRows,
        spec: TrainingSpec,
        weight_decay: float = Recipe.weight_decay,
    ) -> None:
        first, second = (nn.Parameter(weight.clone()) for weight in weights)
        self.weights, self._rows, self._spec = (first, second), rows, spec
        self._optimizer = torch.optim.AdamW(
            self.weights,
            lr=spec.learning_rate,
            weight_decay=weight_decay,
            eps=EPSILON,
            fused=True,
        )

    def update(self, index_B: Tensor) -> None:
        """Do one update on these rows: forward, backward, optimizer."""
        batch = self._rows.at(index_B)
        self._optimizer.zero_grad(set_to_none=True)
        first_EI, second_EJ = self.weights
        both = unit(batch.first_NI @ first_EI.mT), unit(batch.second_NJ @ second_EJ.mT)
        loss = symmetric_info_nce(both, batch.positives_in(batch), self._spec.temperature)
        loss.backward()  # type: ignore[no-untyped-call]
        self._change_gradients()
        self._optimizer.step()

    def _change_gradients(self) -> None:
        """Change gradients between backward and optimizer; here, do nothing."""


class PublishedPair(PlainPair):
    """The published order: gradients are projected, then AdamW rescales them entry by entry."""

    def __init__(
        self,
        weights: tuple[Tensor, Tensor],
        rows: PairedRows,
        spec: TrainingSpec,
        projectors: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        """`projectors`: P_out (E × E) and P_in (I × I) of each head."""
        super().__init__(weights, rows, spec)
        self._projectors = projectors

    @torch.no_grad()
    def _change_gradients(self) -> None:
        for weight, (outputs_EE, inputs_II) in zip(self.weights, self._projectors, strict=True):
            assert weight.grad is not None
            weight.grad -= outputs_EE @ weight.grad @ inputs_II


def projection(mean_II: Tensor, threshold: float) -> Tensor:
    """Return the dense projection (I × I) onto eigenvectors of a mean moment above an absolute
    threshold.

        As published: a full SVD in float32, and U Uᵀ of its leading K columns.
    """
    left_II, values_I, _ = torch.linalg.svd(mean_II)
    left_IK: Tensor = left_II[:, : int((values_I > threshold).sum())]
    return left_IK @ left_IK.mT


def projections(outputs: SecondMoment, inputs: SecondMoment) -> tuple[Tensor, Tensor]:
    """Return P_out and P_in of one head."""
    return (
        projection(outputs.mean_II.float(), OUTPUT_THRESHOLD),
        projection(inputs.mean_II.float(), INPUT_THRESHOLD),
    )


def start_published(moments: Sequence[tuple[SecondMoment, SecondMoment]]) -> None:
    """Do the work before the first update, for the (outputs, inputs) of each head."""
    for outputs, inputs in moments:
        projections(outputs, inputs)
