"""Append random features to those of a modality.

Shapes: B rows, F width of the feature, K random features.

    x ← [x, √(2 / K) relu(x R)]

with a fixed random R (F × K). Heads stay linear in what they read, so that moments, masks and
certificates stay exact, and an embedding is no longer linear in the feature (Rahimi and Recht 2008,
"Weighted sums of random kitchen sinks"). R is a function of the model's seed and not of any dataset:
in any order of datasets, each is summed in the same features.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lift:
    """`random_FK` is R, float32."""

    random_FK: Tensor

    @classmethod
    def drawn(cls, feature_width: int, width: int, seed: str) -> "Lift":
        """Standard normal numbers from the seed, the same on every machine."""
        digest = hashlib.blake2b(seed.encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        return cls(torch.randn(feature_width, width, generator=generator))

    @property
    def width(self) -> int:
        """K: how many features it appends."""
        return self.random_FK.shape[1]

    def to(self, device: torch.device) -> "Lift":
        """Return the lift on another device."""
        return Lift(self.random_FK.to(device))

    def __call__(self, feature_BF: Tensor) -> Tensor:
        """Rows of unit length with their random features (B × (F + K)), which have about unit length."""
        # For a unit row x, x R is standard normal, and the mean square of its positive part is 1/2.
        random_BK = (feature_BF @ self.random_FK.to(feature_BF)).relu_()
        return torch.cat([feature_BF, random_BK.mul_((2 / self.width) ** 0.5)], dim=1)
