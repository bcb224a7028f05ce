"""One head per modality, from features to the shared space: conditioned once, then trained.

Shapes: B rows, F width of the raw feature, E width of the embeddings, I = F + 1 width of what a
head reads (conditioned feature and constant 1).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cmcl.contract.model import ModelSpec
from workers.model.features import head_width, prepare
from workers.nullspace.conditioning import Conditioning


@dataclass(frozen=True)
class ModalityHeads:
    """`weight_EI` of each modality, float32. Immutable: training makes a new one.

    `conditioning` is what the first dataset of a modality fixed for ever; a modality that has had
    none yet is brought to unit length only.
    """

    weights: Mapping[str, Tensor]
    conditioning: Mapping[str, Conditioning] = field(default_factory=dict)

    def prepare(self, modality: str, raw_BF: Tensor) -> Tensor:
        """What the head reads (B × I)."""
        return prepare(raw_BF, self.conditioning.get(modality))

    def outputs(self, modality: str, raw_BF: Tensor) -> Tensor:
        """What the head gives (B × E), before it is brought to unit length."""
        return self.prepare(modality, raw_BF) @ self.weights[modality].mT

    def embed(self, modality: str, raw_BF: Tensor) -> Tensor:
        """Unit embeddings (B × E) of raw features."""
        return torch.nn.functional.normalize(self.outputs(modality, raw_BF), dim=1)

    def replaced(self, changed: Mapping[str, Tensor]) -> "ModalityHeads":
        """These heads with some of the weights exchanged."""
        return replace(self, weights={**self.weights, **changed})

    def conditioned(self, new: Mapping[str, Conditioning]) -> "ModalityHeads":
        """These heads for modalities whose first dataset has come."""
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
