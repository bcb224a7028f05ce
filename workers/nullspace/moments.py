"""Uncentred second moments: under `preserve` the only thing that is kept of a dataset to train the next one.

Shapes: B rows, I width of the first features, J of the second, E of the embeddings.

Sums, not means. They do not depend on any weights, add up over ranks, shards and datasets in any
order, can be subtracted again, and can be pushed through today's weights whenever needed.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

# Products of this many rows are formed in float32, then added in float64. On a CPU that is twice as
# fast as float64 throughout, with a relative error below 1e-7 (docs/log.md).
_CHUNK_ROWS = 8192
# Columns of a square that stays in the cache.
_BLOCK = 256


# Uncentred: E x xᵀ and not the covariance. The mean is a direction in which scores can change like any
# other, so it has to be protected too, and sums of uncentred moments are moments again.


@dataclass(frozen=True)
class SecondMoment:
    """Sum of x xᵀ over `count` rows. `sum_II`: float64, symmetric."""

    count: int
    sum_II: Tensor

    # Σ over two sets of rows is the sum of both Σ: ranks, shards and datasets add up, and a dataset is
    # removed by subtracting its own.
    def __add__(self, other: "SecondMoment") -> "SecondMoment":
        assert self.sum_II.shape == other.sum_II.shape, "sums of different widths"
        return SecondMoment(self.count + other.count, self.sum_II + other.sum_II)

    def __sub__(self, other: "SecondMoment") -> "SecondMoment":
        assert self.sum_II.shape == other.sum_II.shape, "sums of different widths"
        return SecondMoment(self.count - other.count, self.sum_II - other.sum_II)

    def add_rows_(self, rows_BI: Tensor) -> "SecondMoment":
        """Add that of further rows in place, and return the sum. This object is not to be used afterwards."""
        assert self.sum_II.dtype == torch.float64
        total_II = _add_products(self.sum_II, rows_BI, rows_BI)
        return SecondMoment(self.count + len(rows_BI), total_II)

    def cpu(self) -> "SecondMoment":
        """The same on the host, where moments are summed, decomposed and saved."""
        return SecondMoment(self.count, self.sum_II.cpu())

    @property
    def mean_II(self) -> Tensor:
        # E x xᵀ (I × I). Without rows it is zero and not 0 / 0.
        return self.sum_II / max(self.count, 1)

    def through(self, weight_EI: Tensor) -> "SecondMoment":
        """The second moment of the embeddings W x: exactly W S Wᵀ, equation (3)."""
        # Σ (W x)(W x)ᵀ = W (Σ x xᵀ) Wᵀ: no row is needed for it.
        weight_EI = weight_EI.to(self.sum_II)
        return SecondMoment(self.count, weight_EI @ self.sum_II @ weight_EI.mT)


@dataclass(frozen=True)
class PairMoments:
    """Both sides of a dataset and their cross sum x_u x_vᵀ (`cross_IJ`, float64).

    The cross sum says which rows belonged together. It cannot be computed later, so it is kept
    from the first dataset on.
    """

    first: SecondMoment
    second: SecondMoment
    cross_IJ: Tensor

    def __post_init__(self) -> None:
        assert self.first.count == self.second.count
        assert self.cross_IJ.shape == (len(self.first.sum_II), len(self.second.sum_II))

    def __add__(self, other: "PairMoments") -> "PairMoments":
        return PairMoments(
            self.first + other.first, self.second + other.second, self.cross_IJ + other.cross_IJ
        )

    def __sub__(self, other: "PairMoments") -> "PairMoments":
        return PairMoments(
            self.first - other.first, self.second - other.second, self.cross_IJ - other.cross_IJ
        )

    @property
    def count(self) -> int:
        return self.first.count

    @property
    def mean(self) -> "PairMoments":
        """Sums divided by the count, as if there had been one row."""
        # A count of 1 lets the result be used wherever sums are: `mean_II` then divides by 1.
        rows = max(self.count, 1)
        first, second = (SecondMoment(1, side.sum_II / rows) for side in (self.first, self.second))
        return PairMoments(first, second, self.cross_IJ / rows)

    def add_rows_(self, first_BI: Tensor, second_BJ: Tensor) -> "PairMoments":
        """Add those of further paired rows in place, and return the sum. This object is not to be used afterwards.

        Raises ValueError if the two sides differ in rows.
        """
        if len(first_BI) != len(second_BJ):
            raise ValueError(f"{len(first_BI)} first rows but {len(second_BJ)} second rows")
        # The three blocks of Σ [x_u, x_v] [x_u, x_v]ᵀ: I × I, J × J and I × J. The fourth, J × I, is the
        # transpose of the last.
        return PairMoments(
            self.first.add_rows_(first_BI),
            self.second.add_rows_(second_BJ),
            _add_products(self.cross_IJ, first_BI, second_BJ),
        )

    def move_(self, first_I: Tensor, second_J: Tensor) -> None:
        """Make these the moments of rows x + s, in place; the last column of rows x is the constant 1.

        With e the unit vector of the constant, x + s = T x for T = I + s eᵀ, so each sum S becomes T_u S T_vᵀ.
        """
        first_I, second_J = first_I.to(self.first.sum_II), second_J.to(self.second.sum_II)
        _move_(self.first.sum_II, first_I, first_I)
        _move_(self.second.sum_II, second_J, second_J)
        _move_(self.cross_IJ, first_I, second_J)

    def cpu(self) -> "PairMoments":
        """The same on the host."""
        return PairMoments(self.first.cpu(), self.second.cpu(), self.cross_IJ.cpu())

    def swapped(self) -> "PairMoments":
        """The same moments with the two sides exchanged."""
        # (Σ x_u x_vᵀ)ᵀ = Σ x_v x_uᵀ.
        return PairMoments(self.second, self.first, self.cross_IJ.mT.contiguous())


def no_rows(width: int, device: torch.device | None = None) -> SecondMoment:
    """The moment of no rows: the start of a sum. On the host unless stated."""
    return SecondMoment(0, _zeros(width, width, device))


def no_pairs(first: int, second: int, device: torch.device | None = None) -> PairMoments:
    """The moments of no paired rows. On the host unless stated."""
    sides = no_rows(first, device), no_rows(second, device)
    return PairMoments(*sides, _zeros(first, second, device))


def pair_moments(first_BI: Tensor, second_BJ: Tensor) -> PairMoments:
    """Moments of paired rows. Raises ValueError if the two sides differ in rows."""
    widths = first_BI.shape[1], second_BJ.shape[1]
    return no_pairs(*widths, first_BI.device).add_rows_(first_BI, second_BJ)


def moment_about(rows_BI: Tensor, shift_I: Tensor) -> SecondMoment:
    """The moment of float32 rows, with the accuracy of float64 even for rows that hardly differ.

    Rows that hardly differ have a covariance below the rounding of their float32 products. The
    rests after a shift near their mean do not. The shift is put back in float64: for x = y + s,

        Σ x xᵀ = Σ y yᵀ + s Σ yᵀ + (Σ y) sᵀ + n s sᵀ
    """
    # y = x − s (B × I). float32 subtracts two close numbers exactly (within a factor of 2), so what the
    # rows differ by is not rounded away.
    rest_BI = rows_BI - shift_I
    total_I, shift_I = rest_BI.sum(0, dtype=torch.float64), shift_I.double()
    # s Σ yᵀ + n s sᵀ = s (Σ y + n s)ᵀ: one outer product instead of two.
    crossed_II = torch.outer(shift_I, total_I + len(rows_BI) * shift_I)
    # Σ y yᵀ, the two terms with s on the left, and (Σ y) sᵀ.
    rests = no_rows(rest_BI.shape[1], rest_BI.device).add_rows_(rest_BI)
    return replace(rests, sum_II=rests.sum_II + crossed_II + torch.outer(total_I, shift_I))


def triangle(sum_II: Tensor) -> Tensor:
    """The lower triangle of a symmetric sum on the host, by rows: half of its numbers.

    Row by row it takes a tenth of the time of a mask, and a mask a fifth of that of indices.
    """
    rows = sum_II.numpy()
    return torch.from_numpy(np.concatenate([row[: n + 1] for n, row in enumerate(rows)]))


def symmetric(half: Tensor, width: int) -> Tensor:
    """The sum (I × I, float64) of a `triangle`. Raises RuntimeError if it is not that of `width`."""
    if half.shape != (width * (width + 1) // 2,):
        raise RuntimeError(f"a triangle of {half.numel()} numbers is not that of width {width}")
    sum_II = torch.empty(width, width, dtype=torch.float64)
    start, numbers = 0, half.numpy()
    for number, row in enumerate(sum_II.numpy(), start=1):
        row[:number] = numbers[start : start + number]
        start += number
    # In blocks, so that what is transposed stays in the cache.
    for first in range(0, width, _BLOCK):
        own = slice(first, first + _BLOCK)
        sum_II[:first, own] = sum_II[own, :first].mT
        sum_II[own, own] = sum_II[own, own].tril() + sum_II[own, own].tril(-1).mT
    return sum_II


def _add_products(total_IJ: Tensor, left_BI: Tensor, right_BJ: Tensor) -> Tensor:
    """Add Σ_rows left rightᵀ to a float64 sum (I × J) in place, and return it."""
    # Rounding grows with the number of terms: a chunk bounds it, and chunks are added in float64.
    for start in range(0, len(left_BI), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        # A matrix product sums the outer products of its rows: leftᵀ right = Σ_b left_b right_bᵀ.
        total_IJ += left_BI[rows].mT @ right_BJ[rows]
    return total_IJ


def _move_(sum_IJ: Tensor, first_I: Tensor, second_J: Tensor) -> None:
    """(I + s eᵀ) S (I + e tᵀ): the last row of S is Σ of the second side, its last column Σ of the first."""
    sum_IJ.addr_(first_I, sum_IJ[-1].clone())
    sum_IJ.addr_(sum_IJ[:, -1].clone(), second_J)


def _zeros(rows: int, columns: int, device: torch.device | None) -> Tensor:
    # float64 from the start, since every later sum takes the type of this one.
    return torch.zeros(rows, columns, dtype=torch.float64, device=device)
