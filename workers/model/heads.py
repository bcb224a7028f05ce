"""One linear head per modality, from features to the shared space.

Shapes: B rows, F width of the raw feature, K of its lift, E width of the embeddings, I = F + K + 1
width of what a head reads (feature, lift and constant 1).

    raw feature → unit length → conditioned → lifted → constant 1 → W (learned) → unit length

Conditioning and lift are fixed, and a model may have neither.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cmcl.contract.model import ModelSpec
from workers.model.loss import unit
from workers.nullspace.conditioning import Conditioning
from workers.nullspace.lift import Lift


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


def as_read(raw_BF: Tensor, conditioning: Conditioning | None, lift: Lift | None) -> Tensor:
    """What a head reads, without the constant 1 (B × (F + K)): unit length, conditioned, lifted."""
    feature_BF = unit_rows(raw_BF)
    if conditioning is not None:
        feature_BF = conditioning(feature_BF)
    return feature_BF if lift is None else lift(feature_BF)


@dataclass(frozen=True)
class ModalityHeads:
    """`weight_EI` of each modality, float32. Immutable: training makes a new one.

    `conditioning` is fixed by the first dataset of a modality, and `lifts` by the spec. Without them, features
    are scaled to unit length only.
    """

    weights: Mapping[str, Tensor]
    conditioning: Mapping[str, Conditioning] = field(default_factory=dict)
    lifts: Mapping[str, Lift] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return len(next(iter(self.weights.values())))

    def prepare(self, modality: str, raw_BF: Tensor) -> Tensor:
        """What the head reads (B × I)."""
        return with_constant(self.features(modality, raw_BF))

    def features(self, modality: str, raw_BF: Tensor) -> Tensor:
        """What the head reads, without the constant 1 (B × (F + K))."""
        return as_read(raw_BF, self.conditioning.get(modality), self.lifts.get(modality))

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
    return with_new_modalities(ModalityHeads({}), spec)


def with_new_modalities(heads: ModalityHeads, spec: ModelSpec) -> ModalityHeads:
    """The heads of a version, and the initial ones of modalities that the model has got since."""
    new = {name: width for name, width in spec.widths.items() if name not in heads.weights}
    lifts = {
        name: Lift.drawn(width, lift, f"lift/{spec.seed}/{name}")
        for name, width in new.items()
        if (lift := spec.lift_for(width))
    }
    return replace(
        heads.replaced({name: _initial_weight(spec, name) for name in new}),
        lifts={**heads.lifts, **lifts},
    )


def _initial_weight(spec: ModelSpec, modality: str) -> Tensor:
    """Identity where widths agree, else an orthonormal map from the seed; zeros for lift and bias.

    Each modality has its own seed, so that declaring another one changes nothing.
    """
    width, feature_width = spec.width, spec.widths[modality]
    weight_EI = torch.zeros(width, head_width(feature_width + spec.lift_for(feature_width)))
    if feature_width == width:
        weight_EI[:, :width] = torch.eye(width)
        return weight_EI
    digest = hashlib.blake2b(f"{spec.seed}/{modality}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    # Q of a random matrix has orthonormal columns: lengths and angles survive as far as widths allow.
    tall, flat = max(width, feature_width), min(width, feature_width)
    random = torch.randn(tall, flat, generator=generator, dtype=torch.float64)
    orthonormal = torch.linalg.qr(random).Q.float()
    weight_EI[:, :feature_width] = orthonormal if width == tall else orthonormal.mT
    return weight_EI
