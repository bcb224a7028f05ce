"""Covariances of a wide dataset in fewer bytes, within an error that is measured.

How many fewer: docs/decisions/0044-compact-moments.md.

Shapes: F and G widths of the two sides' features, without the constant 1, R and Q directions kept of each.

Most directions of wide features hardly vary. With the eigenvectors of a side's covariance that vary most,
each times the root of its variance (V, F × R), and the cross-covariance in these directions, whitened,

    C_u ≈ V_u V_uᵀ + diag(d_u),    C_v ≈ V_v V_vᵀ + diag(d_v),    X ≈ V_u K V_vᵀ

These are the moments of the rows in the kept directions, and of noise of each feature that is independent of all
others. Its variance d restores the variance of the feature, but for features that have more already by the rounding
of V: their d is 0, and their variance is larger by at most the error below. No singular value of K, as it is stored,
is above 1. So these are moments of some rows, without negative variances, up to the rounding of V_u K to `_PRODUCT_STEP`
and of sums to GRID.

What is left out, and rounded, is the matrix C − V Vᵀ − diag(d). Its largest absolute eigenvalue, rounded up, is the
`error` of a side: no direction's variance is off by more. It is at most `_LARGEST_ERROR` of the typical variance, or the
dataset is kept in full. certificate.drift_and_error says what it may change in a certificate.

V and K are integers times powers of two. Most columns of V need a byte, the leading ones two, in finer steps.
So float64 multiplies and adds them without rounding, in any order and on any machine, and what a dataset adds
to the sums of a version (centred.py) can be taken back to the bit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from workers.nullspace.centred import GRID, CentredMoments
from workers.nullspace.closed_form import NO_VARIANCE, typical_variance

# Directions are left out whose variance is below this share of the ridge that the dataset chose for the side: whitening
# would hardly scale them up. And never above this share of the typical variance.
_OF_RIDGE, _LARGEST_CUT = 0.02, 1e-3
# The largest error of a side, relative to its typical variance.
_LARGEST_ERROR = 2e-3
# Margin for rounding of the error to float32.
_ROUNDED_UP = 1.001
# Steps of K, whose entries are correlations, and of V_u K.
_CROSS_STEP, _PRODUCT_STEP = 2.0**-14, 2.0**-20
_BYTE, _TWO_BYTES = 127, 32767
# float64 holds integers up to here.
_EXACT = 2.0**53


@dataclass(frozen=True)
class CompactSide:
    """V of one side and its diagonal rest.

    `fine_FA` (int16) and `coarse_FB` (int8): the A + B = R columns of V in steps of `fine` and `coarse`.
    `rest_F`: d, float64. `error`: of the variance in any direction, for a weight of 1.
    """

    fine_FA: Tensor
    coarse_FB: Tensor
    rest_F: Tensor
    fine: float
    coarse: float
    error: float

    @property
    def factor_FR(self) -> Tensor:
        """V, float64."""
        return torch.cat(
            [self.fine_FA.double() * self.fine, self.coarse_FB.double() * self.coarse], dim=1
        )

    def sum_FF(self) -> Tensor:
        """V Vᵀ + diag(d) in multiples of GRID, float64."""
        factor_FR = self.factor_FR
        return _on_grid(factor_FR @ factor_FR.mT) + self.rest_F.diag()


@dataclass(frozen=True)
class CompactMoments:
    """What one dataset adds to the sums of a version, in fewer bytes. `cross_RQ`: K in steps, int16."""

    rows: int
    weight: float
    first: CompactSide
    second: CompactSide
    cross_RQ: Tensor
    first_mean_F: Tensor
    second_mean_G: Tensor

    @property
    def errors(self) -> tuple[float, float]:
        """The `error` of both sides."""
        return self.first.error, self.second.error

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Named tensors to store."""
        named = {
            "rows": torch.tensor(self.rows, dtype=torch.int64),
            "weight": torch.tensor(self.weight, dtype=torch.float64),
            "cross": self.cross_RQ.contiguous(),
            "first_mean": self.first_mean_F.contiguous(),
            "second_mean": self.second_mean_G.contiguous(),
        }
        for name, side in (("first", self.first), ("second", self.second)):
            named[f"{name}_fine"] = side.fine_FA.contiguous()
            named[f"{name}_coarse"] = side.coarse_FB.contiguous()
            named[f"{name}_rest"] = side.rest_F
            scales = [side.fine, side.coarse, side.error]
            named[f"{name}_scales"] = torch.tensor(scales, dtype=torch.float64)
        return named

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "CompactMoments":
        """From stored tensors. Raises ValueError if one is missing, or does not fit to the others."""
        if missing := sorted(_TYPES.keys() - tensors.keys()):
            raise ValueError(f"compact moments have no {', '.join(map(repr, missing))}")
        for name, expected in _TYPES.items():
            _check(name, tensors[name], expected)
        first, second = (_stored_side(tensors, name) for name in ("first", "second"))
        ranks = tuple(side.fine_FA.shape[1] + side.coarse_FB.shape[1] for side in (first, second))
        if tuple(tensors["cross"].shape) != ranks:
            found = tuple(tensors["cross"].shape)
            raise ValueError(f"compact moments have 'cross' of shape {found}, expected {ranks}")
        return cls(
            int(tensors["rows"]),
            float(tensors["weight"]),
            first,
            second,
            tensors["cross"],
            tensors["first_mean"],
            tensors["second_mean"],
        )

    def expanded(self) -> CentredMoments:
        """The sums that these stand for: the same bits on every machine."""
        product_FQ = _product(self.first, self.cross_RQ)
        return CentredMoments(
            self.rows,
            torch.tensor([self.weight], dtype=torch.float64),
            self.first.sum_FF(),
            self.second.sum_FF(),
            _on_grid(product_FQ @ self.second.factor_FR.mT),
            self.first_mean_F[None],
            self.second_mean_G[None],
        )


class _Stored(NamedTuple):
    dtype: torch.dtype
    dimensions: int


_TYPES: Mapping[str, _Stored] = {
    "rows": _Stored(torch.int64, 0),
    "weight": _Stored(torch.float64, 0),
    "cross": _Stored(torch.int16, 2),
    **{
        f"{side}_{part}": stored
        for side in ("first", "second")
        for part, stored in (
            ("fine", _Stored(torch.int16, 2)),
            ("coarse", _Stored(torch.int8, 2)),
            ("rest", _Stored(torch.float64, 1)),
            ("scales", _Stored(torch.float64, 1)),
            ("mean", _Stored(torch.float64, 1)),
        )
    },
}


def _stored_side(tensors: Mapping[str, Tensor], name: str) -> CompactSide:
    fine_FA, coarse_FB, rest_F, mean_F = (
        tensors[f"{name}_{part}"] for part in ("fine", "coarse", "rest", "mean")
    )
    widths = [len(part) for part in (fine_FA, coarse_FB, rest_F, mean_F)]
    if len(set(widths)) > 1:
        found = ", ".join(map(str, widths))
        raise ValueError(f"compact moments have a {name} side of several widths: {found}")
    fine, coarse, error = tensors[f"{name}_scales"].tolist()
    return CompactSide(fine_FA, coarse_FB, rest_F, fine, coarse, error)


def _check(name: str, tensor: Tensor, expected: _Stored) -> None:
    found = _Stored(tensor.dtype, tensor.ndim)
    if found != expected or (name.endswith("scales") and len(tensor) != 3):
        raise ValueError(
            f"compact moments have {name!r} of {found.dtype} and shape {tuple(tensor.shape)}, "
            f"expected {expected.dtype} with {expected.dimensions} dimensions"
        )
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"compact moments have {name!r} with values that are not finite")


def compact_moments(
    moments: CentredMoments, ridges: tuple[float, float], in_full: int
) -> CompactMoments | None:
    """The compact form of one dataset's sums (`centred.dataset_moments`).

    `ridges`: those that the dataset chose (two_folds.py), relative to the typical variances.

    None if they are to be kept in full: up to `in_full` bytes as float32, with an error that is too large, or
    with no bytes to save.
    """
    size = _bytes_in_full(moments)
    if size <= in_full:
        return None
    first = _side(moments.first_FF, moments.weight, ridges[0])
    second = _side(moments.second_GG, moments.weight, ridges[1])
    if first is None or second is None:
        return None
    # K = V_u⁺ X V_v⁺ᵀ
    cross_RQ = _correlations(first.inverse_FR.mT @ moments.cross_FG @ second.inverse_FR)
    if cross_RQ is None:
        return None
    found = CompactMoments(
        moments.rows,
        moments.weight,
        first.side,
        second.side,
        cross_RQ,
        moments.first_means_DF[0],
        moments.second_means_DG[0],
    )
    saves = sum(tensor.nbytes for tensor in found.tensors.values()) < size
    return found if saves and _is_exact(found) else None


def _bytes_in_full(moments: CentredMoments) -> int:
    first, second = len(moments.first_FF), len(moments.second_GG)
    return 4 * (first * (first + 1) // 2 + second * (second + 1) // 2 + first * second)


class _Found(NamedTuple):
    """A side, and V⁺ᵀ (F × R) of V before it was rounded."""

    side: CompactSide
    inverse_FR: Tensor


def _side(sum_FF: Tensor, weight: float, ridge: float) -> _Found | None:
    """None if nothing varies, or no step keeps the error."""
    if float(sum_FF.trace()) <= weight * NO_VARIANCE:
        return None
    typical = typical_variance(sum_FF)
    cut = min(_OF_RIDGE * ridge, _LARGEST_CUT) * typical
    # What float32 gets wrong is far below the cut, and part of the error that is measured.
    values_F, vectors_FF = torch.linalg.eigh(sum_FF.float())
    kept = values_F > cut
    root_R, vectors_FR = values_F[kept].double().sqrt(), vectors_FF[:, kept].double()
    factor_FR, inverse_FR = vectors_FR * root_R, vectors_FR / root_R
    # F × R numbers that are rounded in steps δ are off by a matrix whose square has eigenvalues of F δ² / 3.
    step = 2.0 ** math.floor(math.log2(math.sqrt(cut / len(sum_FF))))
    for coarse in (step, step / 2, step / 4, step / 8):
        is_coarse_R = factor_FR.abs().amax(dim=0) <= _BYTE * coarse
        side = _rounded(factor_FR, is_coarse_R, coarse)
        rest_F = (sum_FF - side.sum_FF()).diagonal().clamp_min(0)
        side = replace(side, rest_F=rest_F)
        error = float(torch.linalg.eigvalsh((sum_FF - side.sum_FF()).float()).abs().max())
        if error <= _LARGEST_ERROR * typical:
            columns = torch.cat([inverse_FR[:, ~is_coarse_R], inverse_FR[:, is_coarse_R]], dim=1)
            return _Found(replace(side, error=_ROUNDED_UP * error / weight), columns)
    return None


def _rounded(factor_FR: Tensor, is_coarse_R: Tensor, coarse: float) -> CompactSide:
    """V in steps, without a rest."""
    fine = 2.0 ** -math.floor(math.log2(_TWO_BYTES / float(factor_FR.abs().max())))
    return CompactSide(
        (factor_FR[:, ~is_coarse_R] / fine).round().to(torch.int16),
        (factor_FR[:, is_coarse_R] / coarse).round().to(torch.int8),
        factor_FR.new_zeros(len(factor_FR)),
        fine,
        coarse,
        0.0,
    )


def _correlations(cross_RQ: Tensor) -> Tensor | None:
    """K in steps, int16, without a singular value above 1; None if rounding leaves one.

    Those of the exact K are at most 1. Rounding of directions that hardly vary adds up to some 10⁻², and rounding
    to steps δ a matrix whose norm is close to δ (√R + √Q) / √12: twice that stays free below 1.
    """
    free = 2 * _CROSS_STEP * sum(map(math.sqrt, cross_RQ.shape)) / math.sqrt(12)
    squares_Q, vectors_QQ = torch.linalg.eigh((cross_RQ.mT @ cross_RQ).float())
    scale_Q = (1 - free) / squares_Q.double().clamp_min((1 - free) ** 2).sqrt()
    vectors_QQ = vectors_QQ.double()
    clipped_RQ = (cross_RQ @ vectors_QQ * scale_Q) @ vectors_QQ.mT
    steps_RQ = (clipped_RQ / _CROSS_STEP).round()
    stored_RQ = steps_RQ * _CROSS_STEP
    identity_QQ = torch.eye(stored_RQ.shape[1], dtype=stored_RQ.dtype)
    # I − KᵀK has a Cholesky factor if and only if all singular values are below 1.
    failed = torch.linalg.cholesky_ex(identity_QQ - stored_RQ.mT @ stored_RQ).info
    return None if failed else steps_RQ.to(torch.int16)


def _product(side: CompactSide, cross_RQ: Tensor) -> Tensor:
    """V_u K (F × Q), in steps so that its product with V_v is exact as well."""
    product_FQ = side.factor_FR @ (cross_RQ.double() * _CROSS_STEP)
    return (product_FQ / _PRODUCT_STEP).round() * _PRODUCT_STEP


def _is_exact(moments: CompactMoments) -> bool:
    """Whether float64 holds every partial sum of `expanded`.

    A partial sum of a · b is at most |a| |b|, and a multiple of the two steps.
    """
    first, second = moments.first, moments.second
    one_step, other_step = (min(side.fine, side.coarse) for side in (first, second))
    one, other = (_longest(side.factor_FR) for side in (first, second))
    cross_RQ = moments.cross_RQ.double() * _CROSS_STEP
    product = _longest(_product(first, moments.cross_RQ))
    sizes = (
        one * one / one_step**2,
        other * other / other_step**2,
        one * _longest(cross_RQ.mT) / (one_step * _CROSS_STEP),
        product * other / (_PRODUCT_STEP * other_step),
    )
    return max(sizes) < _EXACT


def _longest(rows_NR: Tensor) -> float:
    return float(rows_NR.norm(dim=1).max())


def _on_grid(sum_FG: Tensor) -> Tensor:
    return (sum_FG / GRID).round() * GRID
