"""The algorithm of arXiv 2503.14963 in NumPy, float64, slowly and by its own arithmetic.

Shares nothing with the product: it keeps all rows instead of moments, decomposes by SVD, writes
the gradient of InfoNCE out by hand, and has its own AdamW that works on W itself.

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
    """Of the optimizer, the loss and the two projections."""

    rate: float
    decay: float
    temperature: float
    unit_vectors: bool
    input_threshold: float
    output_threshold: float


@dataclass(frozen=True)
class Rows:
    """A dataset: homogeneous features of both sides, and the number of the item of either."""

    first_NI: Array
    second_NI: Array
    first_items_N: Sequence[int]
    second_items_N: Sequence[int]


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
    """All heads, and every row that each of them and its partners have seen."""

    weights: dict[str, Array]
    settings: Settings
    features: dict[str, list[Array]] = field(default_factory=dict)
    partners: dict[str, list[tuple[str, Array]]] = field(default_factory=dict)

    def learn(self, pair: tuple[str, str], rows: Rows, batches: Sequence[Sequence[int]]) -> None:
        """One dataset, update by update; then it is remembered."""
        spans = [self.projections(modality) for modality in pair]
        optimizers = [AdamW(self.settings.rate, self.settings.decay) for _ in pair]
        for batch in batches:
            gradients = self.gradients(pair, rows, batch)
            for modality, gradient, span, optimizer in zip(
                pair, gradients, spans, optimizers, strict=True
            ):
                projected = project(gradient, span)
                self.weights[modality] = optimizer.step(self.weights[modality], projected)
        self.remember(pair, rows)

    def remember(self, pair: tuple[str, str], rows: Rows) -> None:
        first, second = pair
        for first_I, second_I in zip(rows.first_NI, rows.second_NI, strict=True):
            self.features.setdefault(first, []).append(first_I[:-1])
            self.features.setdefault(second, []).append(second_I[:-1])
            self.partners.setdefault(first, []).append((second, second_I[:-1]))
            self.partners.setdefault(second, []).append((first, first_I[:-1]))

    def projections(self, modality: str) -> tuple[Array, Array] | None:
        """(P_out, P_in), from all rows so far under today's heads."""
        if modality not in self.features:
            return None
        embeddings = [
            self.weights[partner][:, :-1] @ feature for partner, feature in self.partners[modality]
        ]
        return (
            projection(embeddings, self.settings.output_threshold),
            projection(self.features[modality], self.settings.input_threshold),
        )

    def gradients(
        self, pair: tuple[str, str], rows: Rows, batch: Sequence[int]
    ) -> tuple[Array, Array]:
        """Of symmetric InfoNCE with several positives, with respect to both heads."""
        x_BI, y_BI = rows.first_NI[batch], rows.second_NI[batch]
        u_BE, v_BE = x_BI @ self.weights[pair[0]].T, y_BI @ self.weights[pair[1]].T
        scale = np.linalg.norm if self.settings.unit_vectors else lambda _: 1.0
        a_BE, b_BE = (np.stack([row / scale(row) for row in rows_BE]) for rows_BE in (u_BE, v_BE))
        slope_BB = slopes(a_BE @ b_BE.T / self.settings.temperature, same_items(rows, batch))
        slope_BB = slope_BB / self.settings.temperature
        return (
            self._through_length(u_BE, slope_BB @ b_BE).T @ x_BI,
            self._through_length(v_BE, slope_BB.T @ a_BE).T @ y_BI,
        )

    def _through_length(self, output_BE: Array, slope_BE: Array) -> Array:
        """From the gradient at unit vectors to that at outputs."""
        if not self.settings.unit_vectors:
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
    """What `slopes` is the derivative of."""
    target_BB = same_BB / same_BB.sum(axis=1, keepdims=True)
    both = np.log(softmax(scores_BB)) + np.log(softmax(scores_BB.T))
    return float(-(both * target_BB).sum() / (2 * len(scores_BB)))


def softmax(scores_BB: Array) -> Array:
    risen_BB = np.exp(scores_BB - scores_BB.max(axis=1, keepdims=True))
    return risen_BB / risen_BB.sum(axis=1, keepdims=True)


def projection(rows: Sequence[Array], threshold: float) -> Array:
    """On the leading singular vectors of the mean of x xᵀ: U Uᵀ."""
    mean = np.zeros((len(rows[0]), len(rows[0])))
    for row in rows:
        mean += np.outer(row, row) / len(rows)
    left, values, _ = np.linalg.svd(mean)
    kept = left[:, values > max(threshold, 1e-12 * values[0])]
    return kept @ kept.T


def project(gradient_EI: Array, projections: tuple[Array, Array] | None) -> Array:
    """∇W − P_out ∇W P_in, but for the bias."""
    if projections is None:
        return gradient_EI
    outputs_EE, inputs_FF = projections
    projected_EI = gradient_EI.copy()
    projected_EI[:, :-1] -= outputs_EE @ gradient_EI[:, :-1] @ inputs_FF
    return projected_EI
