"""Eigen-coordinates of a second moment, and how many of them hold a share of its energy.

Shapes: I width, K rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from workers.nullspace.moments import SecondMoment

# Eigenvalues below this share of the largest are rounding of zero in float64.
_ZERO = 1e-12


@dataclass(frozen=True)
class EigenBasis:
    """Orthonormal eigenvectors as columns, by falling eigenvalue; float64 on the CPU."""

    vectors_II: Tensor  # U: column j is the direction u_j
    values_I: Tensor  # s_j = u_jᵀ S u_j = Σ (u_jᵀ x)²: the energy of all rows along u_j

    def __post_init__(self) -> None:
        assert self.vectors_II.shape == (self.width, self.width)

    @property
    def width(self) -> int:
        return len(self.values_I)

    @property
    def moment_II(self) -> Tensor:
        """The matrix that was decomposed: V diag(values) Vᵀ."""
        # Scaling the columns is the product with diag(values).
        return (self.vectors_II * self.values_I) @ self.vectors_II.mT

    def rank_at(self, kept_energy: float) -> int:
        """Smallest number of leading directions that hold `kept_energy` of the trace (0 to 1).

        Relative to the trace and not to the largest eigenvalue: uncentred moments have one huge
        eigenvalue, the mean, and a cut relative to it would protect nothing else.
        Raises ValueError if `kept_energy` is not between 0 and 1.
        """
        if not 0 <= kept_energy <= 1:
            raise ValueError(f"kept_energy is {kept_energy}; permitted are 0 to 1")
        total = self.values_I.sum()
        if kept_energy == 0 or total <= 0:
            return 0
        # Energy behind the first k directions, for k = 1 … I. It falls, so the first k at which it
        # is small enough is the rank. The tolerance counts rounding of zero as zero.
        missing_I = total - self.values_I.cumsum(0)
        enough = missing_I <= (1 - kept_energy) * total + _ZERO * total
        # argmax of a boolean (as 0 and 1) is the index of its first True.
        assert bool(enough[-1]), "all directions hold less than all of the energy"
        return int(enough.double().argmax()) + 1

    def leading(self, kept_energy: float) -> Tensor:
        """The directions that hold `kept_energy` of the trace (I × K)."""
        return self.vectors_II[:, : self.rank_at(kept_energy)]

    def trailing(self, kept_energy: float) -> Tensor:
        """The other directions (I × (I − K))."""
        return self.vectors_II[:, self.rank_at(kept_energy) :]


def eigenbasis(moment: SecondMoment) -> EigenBasis:
    """Decompose in float64: float32 gets small eigenvalues wrong by several per cent.

    The basis of the null space is a continuous function of that space, not the arbitrary one that
    LAPACK returns, so that two machines that agree to rounding train alike.
    Raises ValueError if the moment has values that are not finite.
    """
    sum_II = moment.sum_II.to("cpu", torch.float64)
    if not sum_II.isfinite().all():
        raise ValueError(f"moment of {moment.count} rows has values that are not finite")
    return _decompose(sum_II)


def is_orthonormal(vectors_IK: Tensor, tolerance: float) -> bool:
    """Whether columns are orthonormal, as far as one vector shows: products with it cost no more than reading them."""
    vectors_IK = vectors_IK.double()
    probe_K = torch.linspace(1, 2, vectors_IK.shape[1]).to(vectors_IK)
    rest_K = vectors_IK.mT @ (vectors_IK @ probe_K) - probe_K
    return float(rest_K.norm()) <= tolerance * float(probe_K.norm())


def common_eigenbasis(moments: Sequence[SecondMoment]) -> EigenBasis:
    """Eigenbasis of the sum of the moments, each scaled to trace 1: one basis for all of them.

    Each scaled moment is at most the sum (the others are positive semidefinite), so the values of
    this basis bound its energy along every change from above. Raises ValueError without moments.
    """
    # At trace 1 each moment counts the same, however many rows and however long embeddings it has.
    scaled = [moment.sum_II / _trace_or_one(moment) for moment in moments]
    if not scaled:
        raise ValueError("no moments to have a basis in common")
    return eigenbasis(SecondMoment(1, reduce(add, scaled)))


def identity_basis(width: int) -> EigenBasis:
    """The coordinates of a space in which nothing is protected yet."""
    # Values of 0: no direction holds energy, so `rank_at` is 0 and every direction is a trailing one.
    return EigenBasis(
        torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    )


def directions_within(moment_II: Tensor, basis_IK: Tensor) -> Tensor:
    """The span of orthonormal columns, rotated to the eigenvectors of a moment restricted to it.

    By falling eigenvalue (I × K). What is rounding of zero relative to the moment's trace counts as
    zero: there the directions depend on the columns alone.
    """
    if basis_IK.shape[1] == 0:
        return basis_IK
    # The moment in the coordinates of the span is Bᵀ S B (K × K). With its eigenvectors Y the
    # columns of B Y are orthonormal, span the same space and make Yᵀ Bᵀ S B Y diagonal.
    within_KK = basis_IK.mT @ moment_II @ basis_IK
    return basis_IK @ _decompose(within_KK, float(moment_II.trace())).vectors_II


def _trace_or_one(moment: SecondMoment) -> float:
    trace = float(moment.sum_II.trace())
    return trace if trace > 0 else 1.0


def _canonical(basis_IK: Tensor) -> Tensor:
    """Another orthonormal basis of the same span, determined by that span alone.

    Project a fixed random matrix P on the span: B Bᵀ P is the same for every basis B of the span.
    Its QR decomposition with a positive diagonal of R is unique, and so is its Q. Since B is
    orthonormal, Q(B Bᵀ P) = B Q(Bᵀ P), which is a decomposition of K × K only.
    """
    # The seed is fixed, so every machine projects the same P.
    generator = torch.Generator().manual_seed(0)
    probe_IK = torch.randn(basis_IK.shape, generator=generator, dtype=torch.float64)
    rotation_KK, triangle_KK = torch.linalg.qr(basis_IK.mT @ probe_IK)
    # LAPACK chooses signs freely: flip columns of Q where R's diagonal is negative.
    sign_K = torch.where(triangle_KK.diagonal() < 0, -1.0, 1.0)
    canonical_IK: Tensor = basis_IK @ (rotation_KK * sign_K)
    return canonical_IK


def _decompose(sum_II: Tensor, scale: float = 0.0) -> EigenBasis:
    """Eigenvectors, with a canonical basis where eigenvalues are rounding of zero.

    Rounding is measured against the largest eigenvalue or against `scale`, whichever is larger.
    """
    # The average with the transpose removes asymmetry from rounding; eigh reads one triangle only.
    values_I, vectors_II = torch.linalg.eigh((sum_II + sum_II.mT) / 2)
    # eigh sorts by rising eigenvalue: flip. LAPACK returns column-major memory, a checkpoint gives
    # row-major, and products of the two can differ in the last bit: make it row-major here too.
    values_I, vectors_II = values_I.flip(0).clamp_min(0), vectors_II.flip(1).contiguous()
    # Vectors of equal eigenvalues are arbitrary up to a rotation; zero is the one that matters,
    # because free entries lie there.
    # Values fall, so counting those above the threshold gives the first index of the null space.
    rank = int((values_I > _ZERO * max(float(values_I[0]), scale)).sum())
    vectors_II[:, rank:] = _canonical(vectors_II[:, rank:])
    assert bool((values_I.diff() <= 0).all()), "eigenvalues fall"
    assert is_orthonormal(vectors_II, 1e-8)
    return EigenBasis(vectors_II, values_I)
