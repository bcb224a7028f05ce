"""Eigen-coordinates of a second moment, and how many of them hold a share of its energy.

Shapes: I width, K rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.nullspace.moments import SecondMoment

# Eigenvalues below this share of the largest are rounding of zero in float64.
_ZERO = 1e-12


@dataclass(frozen=True)
class EigenBasis:
    """Orthonormal eigenvectors as columns, by falling eigenvalue; float64 on the CPU."""

    vectors_II: Tensor
    values_I: Tensor

    @property
    def width(self) -> int:
        return len(self.values_I)

    def rank_at(self, kept_energy: float) -> int:
        """Smallest number of leading directions that hold `kept_energy` of the trace (0 to 1).

        Relative to the trace and not to the largest eigenvalue: uncentred moments have one huge
        eigenvalue, the mean, and a cut relative to it would protect nothing else.
        """
        total = self.values_I.sum()
        if total <= 0:
            return 0
        missing_I = total - self.values_I.cumsum(0)
        enough = missing_I <= (1 - kept_energy) * total + _ZERO * total
        return int(enough.double().argmax()) + 1


def eigenbasis(moment: SecondMoment) -> EigenBasis:
    """Decompose in float64: float32 gets small eigenvalues wrong by several per cent.

    The basis of the null space is a continuous function of that space and not the arbitrary one
    that LAPACK happens to return, so that two machines that agree to rounding train alike.
    """
    sum_II = moment.sum_II.to("cpu", torch.float64)
    values_I, vectors_II = torch.linalg.eigh((sum_II + sum_II.mT) / 2)
    values_I, vectors_II = values_I.flip(0).clamp_min(0), vectors_II.flip(1)
    rank = int((values_I > _ZERO * values_I[0]).sum())
    complement_IK = _canonical_complement(vectors_II[:, :rank])
    return EigenBasis(torch.cat([vectors_II[:, :rank], complement_IK], dim=1), values_I)


def identity_basis(width: int) -> EigenBasis:
    """The coordinates of a space in which nothing is protected yet."""
    return EigenBasis(
        torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    )


def _canonical_complement(basis_IK: Tensor) -> Tensor:
    """An orthonormal basis of what `basis_IK` leaves out, determined by that span alone."""
    width, rank = basis_IK.shape
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(width, width - rank, generator=generator, dtype=torch.float64)
    for _ in range(2):  # Once leaves rounding along the span; twice is enough (Kahan).
        probe = torch.linalg.qr(probe - basis_IK @ (basis_IK.mT @ probe)).Q
    return probe
