"""How full a head is, and how many more datasets fit.

Shapes: E width of the embeddings, I width of what the head reads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.nullspace.subspace import EigenBasis

# Below this free share a head counts as full.
FULL_BELOW = 0.1
# The forecast looks at so many of the latest values: the first datasets take atypical bites.
_RECENT = 4
# A free share that loses less than this per dataset, relatively, stands still.
_STANDS_STILL = 1e-3


@dataclass(frozen=True)
class EnergyRanks:
    """How many leading directions of `width` hold 90, 95 and 99 % of the energy."""

    at_90: int
    at_95: int
    at_99: int
    width: int


@dataclass(frozen=True)
class Capacity:
    """The state of one modality's head.

    `inputs`: its features; `outputs`: the embeddings of its partners; `blocked_share`: entries
    that may no longer move, 0 to 1; `datasets_left`: see `datasets_left`.
    """

    inputs: EnergyRanks
    outputs: EnergyRanks
    blocked_share: float
    datasets_left: int | None


def capacity(
    outputs: EigenBasis, inputs: EigenBasis, free_EI: Tensor, free_shares: Sequence[float]
) -> Capacity:
    """Measure a head by its spectra, its mask (bool, E × I) and the free shares up to now.

    `free_shares` holds the free share after each dataset of this modality, oldest first. Raises
    ValueError if the mask does not fit the spectra, or a share is not in [0, 1].
    """
    if free_EI.shape != (outputs.width, inputs.width):
        raise ValueError(
            f"mask of {tuple(free_EI.shape)}, spectra of {(outputs.width, inputs.width)}"
        )
    blocked_share = 1 - float(free_EI.double().mean())
    return Capacity(
        energy_ranks(inputs), energy_ranks(outputs), blocked_share, datasets_left(free_shares)
    )


def energy_ranks(basis: EigenBasis) -> EnergyRanks:
    """Ranks at 90, 95 and 99 % of the trace."""
    return EnergyRanks(
        basis.rank_at(0.9), basis.rank_at(0.95), basis.rank_at(0.99), width=basis.width
    )


def datasets_left(free_shares: Sequence[float]) -> int | None:
    """How many more datasets leave the free share at 10 % or above; None if it cannot be said.

    The assumption: each further dataset blocks the same *part of what is still free* as the
    latest ones did on average (up to four values, a straight line through their logarithms). It
    holds for a stream of datasets of like novelty. A stream that repeats itself lasts longer, a
    dataset of a new kind takes more than its forecast: this is an order of magnitude and no
    promise. 0 if the share is below 10 % already. None with fewer than two values, since one
    dataset says nothing about the next, and where the share does not fall. Raises ValueError if
    a share is not in [0, 1].
    """
    for share in free_shares:
        if not 0 <= share <= 1:
            raise ValueError(f"free share is {share}, it must be from 0 to 1")
    if free_shares and free_shares[-1] < FULL_BELOW:
        return 0
    fall = _fall_per_dataset(free_shares[-_RECENT:])
    if fall < _STANDS_STILL:
        return None
    # A forecast that ends on 10 % to rounding still fits.
    return math.floor(math.log(free_shares[-1] / FULL_BELOW) / fall + 1e-9)


def _fall_per_dataset(free_shares: Sequence[float]) -> float:
    """Least-squares slope of −log(free share) over the datasets; 0 with fewer than two."""
    if len(free_shares) < 2:
        return 0.0
    log_T = torch.tensor(free_shares, dtype=torch.float64).clamp_min(1e-6).log()
    time_T = torch.arange(len(free_shares), dtype=torch.float64)
    time_T = time_T - time_T.mean()
    return -float((time_T * log_T).sum() / time_T.square().sum())
