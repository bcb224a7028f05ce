"""The head of one modality as plain arrays, and as the affine layers that compute the same.

Shapes: F width of the raw feature, K random features of its lift, E width of the embeddings. All arrays are
float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from workers.model.heads import ModalityHeads
from workers.serve.versions.loading import Float32Array


@dataclass(frozen=True)
class ExportedHead:
    """A head in parts, without copies.

    `mean_F` and `map_FF` are None for a modality that is not conditioned, `random_FK` for one without a lift; it
    includes the scale of the random features. `weight_EF` is that of the feature, `lifted_EK` that of the lift,
    `bias_E` that of the constant 1.
    """

    width: int
    mean_F: Float32Array | None
    map_FF: Float32Array | None
    random_FK: Float32Array | None
    weight_EF: Float32Array
    lifted_EK: Float32Array
    bias_E: Float32Array


@dataclass(frozen=True)
class Normalized:
    """A layer that scales rows to unit length."""


@dataclass(frozen=True)
class Affine:
    """A layer y = W x + b, and the positive part of it with `relu`. `bias`: None is 0."""

    weight: Float32Array
    bias: Float32Array | None = None
    relu: bool = False


def exported_head(heads: ModalityHeads, modality: str) -> ExportedHead:
    """The head of this modality. Raises KeyError."""
    weight_EI: Float32Array = heads.weights[modality].numpy()
    conditioning = heads.conditioning.get(modality)
    random_FK = None
    if lift := heads.lifts.get(modality):
        # As `Lift` scales them: a positive factor may go before the positive part.
        random_FK = lift.random_FK.numpy() * np.float32((2 / lift.width) ** 0.5)
    width = weight_EI.shape[1] - (lift.width if lift else 0) - 1
    return ExportedHead(
        width,
        conditioning.mean_F.numpy() if conditioning else None,
        conditioning.map_FF.numpy() if conditioning else None,
        random_FK,
        weight_EI[:, :width],
        weight_EI[:, width:-1],
        weight_EI[:, -1],
    )


def layers(head: ExportedHead) -> Iterator[Normalized | Affine]:
    """The layers that compute the embedding of a feature, each made when it is asked for.

    The mean is subtracted by a layer of its own: x M − μ M would cancel where the map M enlarges directions in which
    the mean is large. The lift appends relu(x R) to x: as x = relu(x) − relu(−x), one layer with a positive part
    carries both, and the head's layer puts them together:

        [W, −W, V] relu([I; −I; Rᵀ] x) = W x + V relu(Rᵀ x)
    """
    yield Normalized()
    if head.mean_F is not None and head.map_FF is not None:
        yield Affine(np.eye(head.width, dtype=np.float32), -head.mean_F)
        yield Affine(head.map_FF)  # Symmetric.
        yield Normalized()
    if head.random_FK is None:
        yield Affine(head.weight_EF, head.bias_E)
    else:
        one_FF = np.eye(head.width, dtype=np.float32)
        yield Affine(np.concatenate([one_FF, -one_FF, head.random_FK.T]), relu=True)
        weights = [head.weight_EF, -head.weight_EF, head.lifted_EK]
        yield Affine(np.concatenate(weights, axis=1), head.bias_E)
    yield Normalized()
