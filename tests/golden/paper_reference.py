"""The algorithm of arXiv 2503.14963 as its code computes it, in NumPy, float64, slowly.

Shares nothing with the product and the baseline: it adds up outer products row by row, decomposes by SVD,
writes the gradient of InfoNCE out by hand, and has its own AdamW that works on W itself.

Shapes: N rows, B rows of a batch, E width of the embeddings, F width of a feature, I = F + 1 with
the constant 1, whose column of W is the bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """Settings of the optimizer, the loss and the two projections."""

    rate: float
    decay: float
    temperature: float
    unit_length: bool
    input_threshold: float
    output_threshold: float
    largest_norm: float


@dataclass(frozen=True)
class Rows:
    """A dataset: homogeneous features of both sides, and the number of the item of either.

    `stored`: the features (N × F each) at positions 0 and 1 of its samples, whatever the pair is.
    """

    first_NI: Array
    second_NI: Array
    first_items_N: Sequence[int]
    second_items_N: Sequence[int]
    stored: tuple[Array, Array]


@dataclass
class AdamW:
    """Decoupled decay (arXiv 1711.05101) of all columns but the last; ε is the service's."""

    rate: float
    decay: float
    epsilon: float = 1e-6
    steps: int = 0
    mean: Array | float = 0.0
    square: Array | float = 0.0

    def step(self, weight_EI: Array, gradient_EI: Array) -> Array:
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient_EI
        self.square = 0.999 * self.square + 0.001 * gradient_EI**2
        mean = self.mean / (1 - 0.9**self.steps)
        square = self.square / (1 - 0.999**self.steps)
        decayed_EI = weight_EI.copy()
        decayed_EI[:, :-1] *= 1 - self.rate * self.decay
        return decayed_EI - self.rate * mean / (np.sqrt(square) + self.epsilon)


@dataclass
class Learner:
    """All heads, the running means of each modality, and the one counter of rows."""

    weights: dict[str, Array]
    settings: Settings
    inputs: dict[str, Array] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)
    rows: int = 0

    def learn(self, pair: tuple[str, str], rows: Rows, batches: Sequence[Sequence[int]]) -> None:
        """One dataset, update by update; then its statistics."""
        projections = [self.projections(modality) for modality in pair]
        optimizers = [AdamW(self.settings.rate, self.settings.decay) for _ in pair]
        for batch in batches:
            gradients = self.clipped(self.gradients(pair, rows, batch))
            for modality, gradient, both, optimizer in zip(
                pair, gradients, projections, optimizers, strict=True
            ):
                projected = project(gradient, both)
                self.weights[modality] = optimizer.step(self.weights[modality], projected)
        self.remember(pair, rows)

    def remember(self, pair: tuple[str, str], rows: Rows) -> None:
        """Positions 0 and 1 as the two modalities of the pair, with the counter of all datasets."""
        total = self.rows + len(rows.first_NI)
        for modality, partner, features_NF in (
            (pair[0], pair[1], rows.stored[0]),
            (pair[1], pair[0], rows.stored[1]),
        ):
            weight_EF = self.weights[modality][:, :-1]
            added_FF = sum_of_squares(features_NF)
            added_EE = sum_of_squares(features_NF @ weight_EF.T)
            known_FF = self.inputs.get(modality, np.zeros_like(added_FF))
            known_EE = self.outputs.get(partner, np.zeros_like(added_EE))
            self.inputs[modality] = known_FF * (self.rows / total) + added_FF / total
            self.outputs[partner] = known_EE * (self.rows / total) + added_EE / total
        self.rows = total

    def projections(self, modality: str) -> tuple[Array, Array] | None:
        """(P_out, P_in); None before the modality's first dataset."""
        if modality not in self.inputs:
            return None
        return (
            projection(self.outputs[modality], self.settings.output_threshold),
            projection(self.inputs[modality], self.settings.input_threshold),
        )

    def clipped(self, gradients: tuple[Array, Array]) -> tuple[Array, Array]:
        """Both scaled down so that their common norm is `largest_norm` at most."""
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
        scale = min(1.0, self.settings.largest_norm / (norm + 1e-6))
        return gradients[0] * scale, gradients[1] * scale

    def gradients(
        self, pair: tuple[str, str], rows: Rows, batch: Sequence[int]
    ) -> tuple[Array, Array]:
        """Gradients of symmetric InfoNCE with several positives, with respect to both heads."""
        x_BI, y_BI = rows.first_NI[batch], rows.second_NI[batch]
        u_BE, v_BE = x_BI @ self.weights[pair[0]].T, y_BI @ self.weights[pair[1]].T
        scale = np.linalg.norm if self.settings.unit_length else lambda _: 1.0
        a_BE, b_BE = (np.stack([row / scale(row) for row in rows_BE]) for rows_BE in (u_BE, v_BE))
        slope_BB = slopes(a_BE @ b_BE.T / self.settings.temperature, same_items(rows, batch))
        slope_BB = slope_BB / self.settings.temperature
        return (
            self._through_length(u_BE, slope_BB @ b_BE).T @ x_BI,
            self._through_length(v_BE, slope_BB.T @ a_BE).T @ y_BI,
        )

    def _through_length(self, output_BE: Array, slope_BE: Array) -> Array:
        """From the gradient at unit vectors to that at outputs."""
        if not self.settings.unit_length:
            return slope_BE
        back = []
        for output_E, slope_E in zip(output_BE, slope_BE, strict=True):
            length = np.linalg.norm(output_E)
            unit_E = output_E / length
            back.append((slope_E - unit_E * (unit_E @ slope_E)) / length)
        return np.stack(back)


def same_items(rows: Rows, batch: Sequence[int]) -> Array:
    """1 where two rows of a batch share the first or the second item."""
    return np.array(
        [
            [
                float(
                    rows.first_items_N[i] == rows.first_items_N[j]
                    or rows.second_items_N[i] == rows.second_items_N[j]
                )
                for j in batch
            ]
            for i in batch
        ]
    )


def slopes(scores_BB: Array, same_BB: Array) -> Array:
    """∂L/∂scores, scores being over temperature; L averages rows and both directions."""
    target_BB = same_BB / same_BB.sum(axis=1, keepdims=True)
    forward_BB = softmax(scores_BB) - target_BB
    backward_BB = softmax(scores_BB.T) - target_BB
    return (forward_BB + backward_BB.T) / (2 * len(scores_BB))


def loss(scores_BB: Array, same_BB: Array) -> float:
    """The loss whose derivative is `slopes`."""
    target_BB = same_BB / same_BB.sum(axis=1, keepdims=True)
    both = np.log(softmax(scores_BB)) + np.log(softmax(scores_BB.T))
    return float(-(both * target_BB).sum() / (2 * len(scores_BB)))


def softmax(scores_BB: Array) -> Array:
    risen_BB = np.exp(scores_BB - scores_BB.max(axis=1, keepdims=True))
    return risen_BB / risen_BB.sum(axis=1, keepdims=True)


def sum_of_squares(rows_NF: Array) -> Array:
    """Σ x xᵀ, row by row."""
    total_FF = np.zeros((rows_NF.shape[1], rows_NF.shape[1]))
    for row_F in rows_NF:
        total_FF += np.outer(row_F, row_F)
    return total_FF


def projection(mean_FF: Array, threshold: float) -> Array:
    """U Uᵀ of the singular vectors with a singular value above the threshold."""
    left_FF, values_F, _ = np.linalg.svd(mean_FF)
    kept_FK = left_FF[:, values_F > threshold]
    return kept_FK @ kept_FK.T


def project(gradient_EI: Array, projections: tuple[Array, Array] | None) -> Array:
    """∇W − P_out ∇W P_in, but for the bias."""
    if projections is None:
        return gradient_EI
    outputs_EE, inputs_FF = projections
    projected_EI = gradient_EI.copy()
    projected_EI[:, :-1] -= outputs_EE @ gradient_EI[:, :-1] @ inputs_FF
    return projected_EI
