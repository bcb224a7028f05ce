"""One linear head per modality, from features to the shared space.

Shapes: B rows, F width of the raw feature, E width of the embeddings, I = F + 1 width of what a
head reads (conditioned feature and constant 1).

    raw feature → unit length → conditioned (frozen) → constant 1 → W (trained) → unit length
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cmcl.contract.model import ModelSpec
from workers.model.loss import unit
from workers.nullspace.conditioning import Conditioning


def head_width(feature_width: int) -> int:
    """Width of what a head reads: the feature and the constant 1."""
    return feature_width + 1


def unit_rows(raw_BF: Tensor) -> Tensor:
    """Raw features at unit length, float32: norms of encoders differ by a factor of 100.

    Rows are never all zeros (intake and the query endpoint refuse them).
    """
    return unit(raw_BF.float())


def with_constant(feature_BF: Tensor) -> Tensor:
    """Append a constant 1, so that the bias is a column like any other, and protected as such."""
    return torch.cat([feature_BF, feature_BF.new_ones(len(feature_BF), 1)], dim=1)


def prepare(raw_BF: Tensor, conditioning: Conditioning | None = None) -> Tensor:
    """What a head reads (B × I): unit length, conditioned if the modality is, then the constant 1."""
    unit_BF = unit_rows(raw_BF)
    return with_constant(conditioning(unit_BF) if conditioning else unit_BF)


@dataclass(frozen=True)
class ModalityHeads:
    """`weight_EI` of each modality, float32. Immutable: training makes a new one.

    `conditioning` is fixed by the first dataset of a modality. Features of a modality without a dataset
    are scaled to unit length only.
    """

    weights: Mapping[str, Tensor]
    conditioning: Mapping[str, Conditioning] = field(default_factory=dict)

    def prepare(self, modality: str, raw_BF: Tensor) -> Tensor:
        """What the head reads (B × I)."""
        return prepare(raw_BF, self.conditioning.get(modality))

    def outputs(self, modality: str, raw_BF: Tensor) -> Tensor:
        """Embeddings (B × E) before they are scaled to unit length."""
        return self.prepare(modality, raw_BF) @ self.weights[modality].mT

    def embed(self, modality: str, raw_BF: Tensor) -> Tensor:
        """Unit embeddings (B × E) of raw features."""
        return unit(self.outputs(modality, raw_BF))

    def replaced(self, changed: Mapping[str, Tensor]) -> "ModalityHeads":
        """These heads with some of the weights replaced."""
        return replace(self, weights={**self.weights, **changed})

    def conditioned(self, new: Mapping[str, Conditioning]) -> "ModalityHeads":
        """These heads with the conditioning of modalities whose first dataset this is."""
        return replace(self, conditioning={**new, **self.conditioning})


def initial_heads(spec: ModelSpec) -> ModalityHeads:
    """The heads before the first dataset: a function of the spec alone."""
    return ModalityHeads(
        {
            modality: _initial_weight(spec.width, width, spec.seed, modality)
            for modality, width in spec.modalities.items()
        }
    )


def _initial_weight(width: int, feature_width: int, seed: int, modality: str) -> Tensor:
    """Identity where widths agree, else an orthonormal map from the seed; no bias yet.

    Each modality has its own seed, so that declaring another one changes nothing.
    """
    weight_EI = torch.zeros(width, head_width(feature_width))
    if feature_width == width:
        weight_EI[:, :width] = torch.eye(width)
        return weight_EI
    digest = hashlib.blake2b(f"{seed}/{modality}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    # Q of a random matrix has orthonormal columns: lengths and angles survive as far as widths allow.
    tall, flat = max(width, feature_width), min(width, feature_width)
    random = torch.randn(tall, flat, generator=generator, dtype=torch.float64)
    orthonormal = torch.linalg.qr(random).Q.float()
    weight_EI[:, :feature_width] = orthonormal if width == tall else orthonormal.mT
    return weight_EI
