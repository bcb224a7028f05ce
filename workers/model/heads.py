"""One linear head per modality, from features to the shared space, and paired rows of features.

Shapes: B rows of one modality, N paired rows, F width of the raw feature, K of its lift, E width of the embeddings, I = F + K + 1
width of what a head reads (feature, lift and constant 1); J that of the other side of a pair.

    raw feature → unit length → conditioned → lifted → constant 1 → W (learned) → unit length

Conditioning and lift are fixed, and a model may have neither.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import xxhash
from torch import Tensor

from cmcl.contract.model import ModelSpec
from workers.model.loss import positives, unit
from workers.nullspace.conditioning import Conditioning, Lift

# 53 bits, of which 32 are behind the point.
EXACT_BELOW = 2.0**21


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


def as_read(
    raw_BF: Tensor,
    conditioning: Conditioning | None,
    lift: Lift | None,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """What a head reads, without the constant 1 (B × (F + K)): unit length, conditioned, lifted."""
    feature_BF = unit(raw_BF.to(precision))
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

    def exact(self, modality: str, raw_BF: Tensor) -> Tensor:
        """What the head reads, in multiples of 2⁻¹⁶ (B × I, float64): equal bits for equal rows, in any batch.

        Products are multiples of 2⁻³², which float64 sums without rounding below `EXACT_BELOW`. float32 rounds each
        product of a batch as its shape has it.
        """
        parts = self.conditioning.get(modality), self.lifts.get(modality)
        feature_BF = as_read(raw_BF, *parts, torch.float64)
        return with_constant(feature_BF.mul_(2**16).round_().div_(2**16))

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

    def without(self, initial: Mapping[str, Tensor]) -> "ModalityHeads":
        """These heads with the `initial` weights of modalities that no longer have a dataset."""
        left = {name: each for name, each in self.conditioning.items() if name not in initial}
        return replace(self.replaced(initial), conditioning=left)


def initial_heads(spec: ModelSpec) -> ModalityHeads:
    """The heads before the first dataset: a function of the spec alone."""
    return with_new_modalities(ModalityHeads({}), spec)


def with_new_modalities(heads: ModalityHeads, spec: ModelSpec) -> ModalityHeads:
    """The heads of a version, and the initial ones of modalities that the model has got since."""
    new = {name: width for name, width in spec.widths.items() if name not in heads.weights}
    lifts = {
        name: Lift.from_seed(width, lift, f"lift/{spec.seed}/{name}")
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


@dataclass(frozen=True)
class PairedRows:
    """Features of both sides and the content keys (int64) of either."""

    first_NI: Tensor
    second_NJ: Tensor
    first_keys_N: Tensor
    second_keys_N: Tensor

    def __len__(self) -> int:
        return len(self.first_NI)

    def at(self, index_B: Tensor | slice) -> "PairedRows":
        """Some of the rows: by number, slice or mask."""
        return PairedRows(
            self.first_NI[index_B],
            self.second_NJ[index_B],
            self.first_keys_N[index_B],
            self.second_keys_N[index_B],
        )

    def to(self, device: torch.device) -> "PairedRows":
        """Return the rows on another device."""
        parts = (self.first_NI, self.second_NJ, self.first_keys_N, self.second_keys_N)
        return PairedRows(*(_moved(part, device) for part in parts))

    def halves(self) -> "tuple[PairedRows, PairedRows]":
        """The rows in two halves, by a hash of their content.

        Where a row is, on which rank and in which order does not matter, and equal rows are in the
        same half.
        """
        in_second_N = self.in_second_half_N
        return self.at(~in_second_N), self.at(in_second_N)

    @property
    def in_second_half_N(self) -> Tensor:
        """Which of the two `halves` each row is in (bool, N)."""
        return _hash_bit(self.first_keys_N, self.second_keys_N)

    def positives_in(self, everywhere: "PairedRows") -> Tensor:
        """Which rows of `everywhere` share an item with each of these (bool, N × B)."""
        return positives(
            self.first_keys_N,
            self.second_keys_N,
            everywhere.first_keys_N,
            everywhere.second_keys_N,
        )


# Odd, with many set bits: a product by it spreads every bit of a key over the higher ones.
_MULTIPLIER = 0x1E3779B97F4A7C15
_FOLD, _BIT = 29, 40


def _hash_bit(first_keys_N: Tensor, second_keys_N: Tensor) -> Tensor:
    """A bit of each row (bool, N) that depends on both keys, evenly distributed.

    Sums and products of int64 wrap around, on every device alike.
    """
    mixed_N = first_keys_N * 31 + second_keys_N
    # Folding moves high bits down, so that keys that differ only there differ after the product.
    mixed_N = (mixed_N ^ (mixed_N >> _FOLD)) * _MULTIPLIER
    mixed_N = (mixed_N ^ (mixed_N >> _FOLD)) * _MULTIPLIER
    return (mixed_N >> _BIT) & 1 == 1


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a GPU through pinned memory, so that the copy is asynchronous."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def content_keys(raw_NI: np.ndarray) -> np.ndarray:
    """An int64 per row, equal if the rows are equal as float32: captions and labels repeat."""
    rows = np.ascontiguousarray(raw_NI, dtype=np.float32)
    digests = (xxhash.xxh3_64_intdigest(row) for row in rows)
    keys: np.ndarray = np.fromiter(digests, dtype=np.uint64, count=len(rows)).view(np.int64)
    return keys
