"""How far live queries lie from the datasets that a model has learned, from sums alone.

Shapes: B rows, F width of the raw feature, K numbers of its projection, I = K + 1 with the constant 1, D datasets.

What is summed are raw features at unit length, projected to K = 64 numbers by random signs (F × K), a function of F
alone: sums of a dataset, of two replicas, or of two versions can be compared and added. They are of whole numbers, which
float64 adds without rounding, so they have the same bits in every order.

Of queries the sum alone is needed. Rows x of unit length have

    tr C = 1 − |m|²                                                                             (19)

so a stream that is narrower or wider than what was learned has another mean m as well. Queries may be of several datasets
at once, and the mean of a mixture is the mixture of means: so the distance is that to the nearest mixture p,

    t = |V (m − Σ p_d m_d)|²,   V = (C + e I)^-½,   e = 0.01 λ_max                              (20)

with C the covariance of all datasets together. By chance alone t is Σ λ χ²₁, λ the eigenvalues of V N V, where N is the
noise of a mean of n queries and of those of the datasets:

    N = C_p / n + Σ p_d² f_d C_d / n_d                                                          (21)

f_d is what the means of the two halves of a dataset differ by, relative to what those of independent rows would: rows
repeat, and a mean over few different rows says less than their number.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

WIDTH = 64
# A number of a unit row is a multiple of 2⁻¹⁶: float64 adds 2³⁷ of them without rounding.
GRID = 2.0**-16
# Squares of projections, at most F · 2²⁰, are added 2²⁰ times without rounding.
COARSE = 2.0**-10
_RIDGE = 0.01


def on_grid(unit_BF: Tensor) -> Tensor:
    """Rows at unit length (float64, B × F) as multiples of `GRID`, whole numbers."""
    return torch.round(unit_BF.double() / GRID)


@cache
def _signs(width: int) -> Tensor:
    """Random signs (F × K), float64."""
    digest = hashlib.blake2b(f"drift/{width}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.randint(2, (width, WIDTH), generator=generator).double() * 2 - 1


def projected(unit_BF: Tensor) -> Tensor:
    """The projection (B × I, float64) of rows at unit length in multiples of `COARSE`, and the constant 1."""
    numbers_BK = on_grid(unit_BF) @ _signs(unit_BF.shape[1]).to(unit_BF.device)
    coarse_BK = torch.round(numbers_BK * (GRID / COARSE))
    return torch.cat([coarse_BK, coarse_BK.new_ones(len(coarse_BK), 1)], dim=1)


def sums_of_halves(rows_BI: Tensor, in_second_B: Tensor) -> Tensor:
    """Σ y yᵀ of `projected` rows y (2 × I × I), of those in the first half and in the second. They add up.

    The constant 1 makes the last row the sum of the rows, and the last number their count.
    """
    halves = rows_BI[~in_second_B], rows_BI[in_second_B]
    return torch.stack([half_BI.mT @ half_BI for half_BI in halves])


@dataclass(frozen=True)
class QuerySum:
    """Sum (F, float64, in multiples of `GRID`) of queries at unit length."""

    rows: int
    sum_F: Tensor

    def __add__(self, other: "QuerySum") -> "QuerySum":
        return QuerySum(self.rows + other.rows, self.sum_F + other.sum_F)

    @property
    def mean_K(self) -> Tensor:
        """The mean of the projections."""
        return self.sum_F @ _signs(len(self.sum_F)) * (GRID / self.rows)


@dataclass(frozen=True)
class KnownDataset:
    """Mean and covariance of the projections of a dataset. `factor`: f_d of (21), at least 1."""

    rows: int
    mean_K: Tensor
    covariance_KK: Tensor
    factor: float

    @classmethod
    def from_halves(cls, halves_2II: Tensor) -> "KnownDataset":
        """From the sums of both halves (`sums_of_halves`), of at least one row."""
        first, second = halves_2II[:, -1, -1].tolist()
        whole_II = halves_2II.sum(0)
        mean_K = whole_II[-1, :-1] * (COARSE / (first + second))
        covariance_KK = whole_II[:-1, :-1] * (COARSE**2 / (first + second))
        covariance_KK -= torch.outer(mean_K, mean_K)
        factor = 1.0
        if first and second:
            map_KK = _whitening(covariance_KK)
            means_2K = halves_2II[:, -1, :-1] / halves_2II[:, -1, -1:] * COARSE
            apart_K = (means_2K[0] - means_2K[1]) @ map_KK
            by_chance = float(_whitened(covariance_KK, map_KK).trace()) * (1 / first + 1 / second)
            factor = max(float(apart_K.square().sum()) / max(by_chance, 1e-300), 1.0)
        return cls(int(first + second), mean_K, covariance_KK, factor)


@dataclass(frozen=True)
class Deviation:
    """How far queries lie from the nearest mixture of known datasets, and how far they may by chance.

    `shares_D`: of the mixture. Both distances are squared, in standard deviations of all datasets together.
    """

    distance: float
    permitted: float
    shares_D: Tensor

    @property
    def excess(self) -> float:
        """What the distance has beyond the permitted one."""
        return max(self.distance - self.permitted, 0.0)

    @property
    def level(self) -> float:
        """The distance relative to the permitted one; above 1 is drift."""
        return math.sqrt(self.distance / max(self.permitted, 1e-300))


class Reference:
    """Datasets of one modality that queries are compared with. Raises ValueError without any."""

    def __init__(self, known: Sequence[KnownDataset]) -> None:
        if not known:
            raise ValueError("no dataset to compare queries with")
        self._known = known
        means_DK = torch.stack([each.mean_K for each in known])
        covariances_DKK = torch.stack([each.covariance_KK for each in known])
        self._middle_K = means_DK.mean(0)
        about_DK = means_DK - self._middle_K
        self._map_KK = _whitening(covariances_DKK.mean(0) + about_DK.mT @ about_DK / len(known))
        self._means_DK = about_DK @ self._map_KK
        self._covariances_DKK = _whitened(covariances_DKK, self._map_KK)

    def deviation(self, mean_K: Tensor, rows: int, false_alarms: float) -> Deviation:
        """Compare the mean (K) of the projections of some queries.

        `false_alarms`: probability that the distance of queries of known datasets is above the permitted one.
        """
        mean_K = (mean_K - self._middle_K) @ self._map_KK
        shares_D = nearest_mixture(self._means_DK, mean_K)
        nearest_K = shares_D @ self._means_DK
        apart_DK = self._means_DK - nearest_K
        noise_KK = (apart_DK.mT * shares_D) @ apart_DK / rows
        for share, known, own_KK in zip(
            shares_D.tolist(), self._known, self._covariances_DKK, strict=True
        ):
            noise_KK += (share / rows + share**2 * known.factor / known.rows) * own_KK
        distance = float((mean_K - nearest_K).square().sum())
        return Deviation(distance, _quantile(noise_KK, false_alarms), shares_D)


def nearest_mixture(means_DK: Tensor, target_K: Tensor) -> Tensor:
    """Shares (D) of at least 0 that sum to 1, with the least |shares @ means − target| (Lawson and Hanson 1974).

    Shares x / Σ x minimise it where x ≥ 0 minimises |x A|² + (Σ x − 1)², with A the means about the target.
    """
    about_DK = means_DK - target_K
    gram_DD = about_DK @ about_DK.mT
    gram_DD = gram_DD / (float(gram_DD.diagonal().mean()) + 1e-300) + 1
    shares_D = torch.zeros_like(gram_DD[0])
    used: list[int] = []
    for _ in range(3 * len(shares_D)):
        slope_D = 1 - gram_DD @ shares_D
        slope_D[used] = 0
        best = int(slope_D.argmax())
        if slope_D[best] <= 1e-10:
            break
        assert best not in used, "a dataset is in the mixture twice"
        used.append(best)
        while True:
            ones_U1 = gram_DD.new_ones(len(used), 1)
            found_U = torch.linalg.lstsq(gram_DD[used][:, used], ones_U1).solution[:, 0]
            if bool((found_U > 0).all()):
                break
            # As far towards the unconstrained shares as all stay at least 0; those that reach it leave.
            old_U = shares_D[used]
            room_U = torch.where(
                found_U > 0, torch.inf, old_U / (old_U - found_U).clamp_min(1e-300)
            )
            moved_U = old_U + float(room_U.min()) * (found_U - old_U)
            shares_D.zero_()
            shares_D[used] = moved_U.clamp_min(0)
            used = [each for each in used if shares_D[each] > 1e-12]
        shares_D.zero_()
        shares_D[used] = found_U
    return shares_D / shares_D.sum()


def _quantile(noise_KK: Tensor, above: float) -> float:
    """The number that Σ λ χ²₁ exceeds with this probability, λ the eigenvalues of the noise.

    Of the gamma distribution with the same three moments, by Wilson and Hilferty's cube root, which is normal.
    """
    square_KK = noise_KK @ noise_KK
    first, second = float(noise_KK.trace()), float(square_KK.trace())
    third = float((square_KK @ noise_KK).trace())
    if second <= 0:
        return 0.0
    # Cumulants of Σ λ χ²₁: Σ λ, 2 Σ λ², 8 Σ λ³.
    shape, scale = second**3 / third**2 / 2, 2 * third / second
    normal = NormalDist().inv_cdf(1 - above)
    gamma = shape * max(1 - 1 / (9 * shape) + normal / (3 * math.sqrt(shape)), 0.0) ** 3
    return first + scale * (gamma - shape)


def _whitening(covariance_KK: Tensor) -> Tensor:
    """V of (20)."""
    values_K, vectors_KK = torch.linalg.eigh(covariance_KK)
    ridge = _RIDGE * float(values_K[-1]) + 1e-12
    found_KK: Tensor = vectors_KK / (values_K.clamp_min(0) + ridge).sqrt()
    return found_KK


def _whitened(covariance_KK: Tensor, map_KK: Tensor) -> Tensor:
    return map_KK.mT @ covariance_KK @ map_KK
