"""The fixed maps between a feature and what a head reads: conditioning by the first dataset, and the lift.

Shapes: B rows, F width of the raw feature, K random features, I = F + 1 width with the constant 1 appended.

*Conditioning* is fixed once and for all by a modality's first dataset. Encoders differ widely: the features of some
lie in a narrow cone in which unrelated texts have cosine 0.9. The map is part of the version, since every moment and
every head is of conditioned features. Where heads are trained on rows it centres and mildly whitens (`conditioning`,
equation (1)). The closed form whitens by itself, so under the policy improve it only centres rows in a narrow cone
(`centring`), whose random features would otherwise hardly ever change sign.

The *lift* appends random features,

    x ← [x, √(2 / K) relu(x R)]

with a fixed random R (F × K). Heads stay linear in what they read, so that moments, masks and
certificates stay exact, and an embedding is no longer linear in the feature (Rahimi and Recht 2008,
"Weighted sums of random kitchen sinks"). R is a function of the model's seed and not of any dataset.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from workers.nullspace.moments import SecondMoment

# e = RIDGE · λ_max of (1). Mild: encoders that lie in a narrow cone gain from it, and the others lose nothing
# (docs/decisions/0007).
RIDGE = 0.3
# Squared length of the mean of unit features from which they are centred under improve. Below, recall falls by less than
# it differs between seeds (docs/decisions/0057).
NARROW_CONE = 0.75
# A spread below this share of a row's energy cannot be distinguished from rounding: of a row that is nearer to the
# mean than a millionth of its length (a share of 1e-12), float32 leaves no direction.
_NO_SPREAD = 1e-10
# What float32 leaves of a row that lies on the mean: a direction made of it would be noise.
_ON_THE_MEAN = 1e-6


@dataclass(frozen=True)
class Conditioning:
    """x ← (x − μ) map, both float32. `map`: symmetric (F × F), and rows then get unit length; or one number (1)."""

    mean_F: Tensor
    map: Tensor

    @property
    def width(self) -> int:
        """Width of the raw feature."""
        return len(self.mean_F)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Both, by name."""
        return {"mean": self.mean_F, "map": self.map}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Conditioning":
        """From `tensors`. Raises KeyError if one is missing."""
        return cls(tensors["mean"], tensors["map"])

    def equals(self, other: "Conditioning") -> bool:
        """Whether every number is the same, which means the same first dataset."""
        return torch.equal(self.mean_F, other.mean_F) and torch.equal(self.map, other.map)

    def to(self, device: torch.device) -> "Conditioning":
        """Return the map on another device."""
        return Conditioning(self.mean_F.to(device), self.map.to(device))

    def __call__(self, unit_BF: Tensor) -> Tensor:
        """Conditioned rows (B × F), in the type and on the device of `unit_BF`.

        Computed in float32 at least. A row on the mean has no direction: it becomes all zeros, never
        NaN, and a head sees its bias alone. Raises ValueError at another width.
        """
        if self._is_identity:
            return unit_BF
        centred_BF = self.centred(unit_BF)
        if self.map.ndim == 1:
            return (centred_BF * self.map.to(centred_BF)).to(unit_BF.dtype)
        # (x − μ)(C + e I)^-½; the map is symmetric, so it needs no transpose.
        mapped_BF = centred_BF @ self.map.to(centred_BF)
        # unit(·) of equation (1). It divides by 1e-12 at least, so a row of zeros stays one.
        return torch.nn.functional.normalize(mapped_BF, dim=1).to(unit_BF.dtype)

    @cached_property
    def _is_identity(self) -> bool:
        return self.map.ndim == 1 and float(self.map) == 1 and not self.mean_F.any()

    def centred(self, unit_BF: Tensor) -> Tensor:
        """x − μ (B × F), at least float32; zeros if only rounding would be left."""
        if unit_BF.shape[-1] != self.width:
            raise ValueError(f"rows of width {unit_BF.shape[-1]}, not {self.width}")
        rows_BF = unit_BF.to(torch.promote_types(unit_BF.dtype, torch.float32))
        mean_F = self.mean_F.to(rows_BF)
        centred_BF = rows_BF - mean_F
        # x − μ cancels where x ≈ μ: what is left is compared with the numbers that were subtracted.
        size_B1 = rows_BF.norm(dim=1, keepdim=True).clamp_min(mean_F.norm())
        apart_B1 = centred_BF.norm(dim=1, keepdim=True) > _ON_THE_MEAN * size_B1
        return torch.where(apart_B1, centred_BF, 0)


def conditioning(moment: SecondMoment, ridge: float = RIDGE) -> Conditioning:
    """The map of unit raw features with a 1 appended, from their moment (I × I).

    μ and C are their mean and covariance, the map is (C + e I)^-½ with e = ridge · λ_max: in the
    first dataset a direction of variance λ comes out with λ / (λ + e), so large variances become
    about 1 and small ones stay small. The symmetric root (ZCA whitening, arXiv 1512.00809) is unique:
    it does not depend on the eigenvectors that LAPACK returns, and it rotates with the features.
    Rows without spread (one row, or all rows equal) have no covariance to whiten by, and centring
    would leave zeros: they get the identity and keep their mean.
    Use a moment with the accuracy of float64 (`moment_about`), since the mean is subtracted from it.

    Raises ValueError if the ridge is not in (0, 1], without rows, for values that are not finite
    and if the last column is not the constant 1.
    """
    if not 0 < ridge <= 1:
        raise ValueError(f"ridge is {ridge}, it must be above 0 and at most 1")
    mean_F, covariance_FF, energy = _mean_and_covariance(moment)
    # tr C ≤ ε E|x|²: the rows do not differ by more than rounding.
    if covariance_FF.trace() <= _NO_SPREAD * energy:
        return _unconditioned(len(mean_F))
    # C = Y diag(λ) Yᵀ, so (C + e I)^-½ = Y diag((λ + e)^-½) Yᵀ.
    values_F, vectors_FF = torch.linalg.eigh(covariance_FF)
    values_F = values_F.clamp_min(0)
    # e, added to every variance: whitening fades out below it.
    floor = ridge * values_F.max()
    assert floor > 0, "rows with a spread have no variance"
    # Scaling the columns of Y and multiplying by Yᵀ is Y diag(root) Yᵀ (F × F).
    root_F = (values_F + floor).rsqrt()
    map_FF = (vectors_FF * root_F) @ vectors_FF.mT
    # Rounding makes the product slightly asymmetric; the map must be symmetric exactly.
    return Conditioning(mean_F.float(), ((map_FF + map_FF.mT) / 2).float())


def centring(moment: SecondMoment) -> Conditioning:
    """x ← (x − μ) / s for unit raw features in a narrow cone, from their moment with a 1 appended (I × I); else the identity.

    μ is their mean, s their root mean square distance from it, and the cone |μ|². Where an encoder adds a constant to all
    rows, random features of the rows as they are hardly ever change sign. The mean is then nearly that constant,
    for any first dataset; elsewhere nothing depends on the first dataset. Rows without spread stay as they are.
    Raises ValueError as `conditioning`.
    """
    mean_F, covariance_FF, energy = _mean_and_covariance(moment)
    variance = float(covariance_FF.trace())
    if float(mean_F.square().sum()) < NARROW_CONE or variance <= _NO_SPREAD * energy:
        return Conditioning(torch.zeros(len(mean_F)), torch.ones(1))
    return Conditioning(mean_F.float(), torch.tensor([variance**-0.5]))


def _mean_and_covariance(moment: SecondMoment) -> tuple[Tensor, Tensor, float]:
    """Mean, covariance (float64, on the CPU) and mean square length of the rows."""
    if moment.count < 1:
        raise ValueError("the dataset to condition features by has 0 rows")
    mean_II = moment.mean_II.to("cpu", torch.float64)
    if not mean_II.isfinite().all():
        raise ValueError("the moment to condition by holds values that are not finite")
    # The mean of 1 · 1: anything else means that no constant was appended.
    if abs(float(mean_II[-1, -1]) - 1) > 1e-3:
        raise ValueError(f"the last column must be 1, its mean square is {mean_II[-1, -1]:.3g}")
    # With x̃ = [x, 1] the mean of x̃ x̃ᵀ is [[E x xᵀ, E x], [E xᵀ, 1]]: the last column is the mean,
    # and the covariance is E x xᵀ − μ μᵀ.
    mean_F, square_FF = mean_II[:-1, -1], mean_II[:-1, :-1]
    covariance_FF = (square_FF + square_FF.mT) / 2 - torch.outer(mean_F, mean_F)
    return mean_F, covariance_FF, float(square_FF.trace())


def _unconditioned(width: int) -> Conditioning:
    """The identity: x − 0, times I."""
    return Conditioning(torch.zeros(width), torch.eye(width))


@dataclass(frozen=True)
class Lift:
    """Appends random features. `random_FK` is R, float32."""

    random_FK: Tensor

    @classmethod
    def from_seed(cls, feature_width: int, width: int, seed: str) -> "Lift":
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
        """Rows with their random features (B × (F + K)), which are about as long as the rows."""
        # For a row x of unit length, x R is standard normal, and the mean square of its positive part is 1/2.
        random_BK = (feature_BF @ self.random_FK.to(feature_BF)).relu_()
        return torch.cat([feature_BF, random_BK.mul_((2 / self.width) ** 0.5)], dim=1)
