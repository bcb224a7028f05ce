"""The trainable part: one linear head per modality, from features to the shared space.

Shapes: B rows, E width of the embeddings, I width of what a head reads (feature and constant 1).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.contract.model import ModelSpec
from workers.model.features import head_width


@dataclass(frozen=True)
class ModalityHeads:
    """`weight_EI` of each modality, float32. Immutable: training makes a new one."""

    weights: Mapping[str, Tensor]

    def embed(self, modality: str, prepared_BI: Tensor) -> Tensor:
        """Unit embeddings (B × E) of prepared features."""
        embedding_BE = prepared_BI @ self.weights[modality].mT
        return torch.nn.functional.normalize(embedding_BE, dim=1)

    def replaced(self, changed: Mapping[str, Tensor]) -> "ModalityHeads":
        """These heads with some of them exchanged."""
        return ModalityHeads({**self.weights, **changed})


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

    The seed of each modality is its own, so that declaring another one changes nothing.
    """
    weight_EI = torch.zeros(width, head_width(feature_width))
    if feature_width == width:
        weight_EI[:, :width] = torch.eye(width)
        return weight_EI
    digest = hashlib.blake2b(f"{seed}/{modality}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    tall, flat = max(width, feature_width), min(width, feature_width)
    random = torch.randn(tall, flat, generator=generator, dtype=torch.float64)
    orthonormal = torch.linalg.qr(random).Q.float()
    weight_EI[:, :feature_width] = orthonormal if width == tall else orthonormal.mT
    return weight_EI
