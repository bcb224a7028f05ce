"""Which entries of an update may move, in the eigen-coordinates of its inputs and outputs.

Shapes: E width of the embeddings, I width of the features, N entries in doubt.

A change Δ of a head moves old scores by Σ r_i s_j (Vᵀ Δ U)_ij² in mean square, with (s, U) the
eigen-pairs of the earlier inputs and (r, V) those of the partners' embeddings: in the coordinates
M = Vᵀ Δ U interference is elementwise, and so is protection. r_i s_j is an entry's *energy*.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.nullspace.subspace import EigenBasis, identity_basis

# Entries below this share of the largest energy are rounding of zero in float64.
_ZERO = 1e-12
# Halvings of twelve decades: what then remains in doubt lies within a millionth of one energy.
_HALVINGS = 25
_ROUNDING = 1e-9

MaskRule = Callable[[EigenBasis, EigenBasis, float], Tensor]
"""(outputs, inputs, kept_energy) → free entries (bool, E × I)."""


@dataclass(frozen=True)
class UpdateSpace:
    """Where one head trains: M in  W = W₀ + V M Uᵀ, and which entries of M may move.

    `outputs` is V with its eigenvalues, `inputs` is U; `free_EI` is True where M may move.
    """

    outputs: EigenBasis
    inputs: EigenBasis
    free_EI: Tensor

    @property
    def energy_EI(self) -> Tensor:
        """r_i s_j: what a unit of each entry adds to the summed squares of old score changes."""
        return torch.outer(self.outputs.values_I, self.inputs.values_I)

    @property
    def blocked_share(self) -> float:
        """Share of the entries that may not move, 0 to 1."""
        return 1.0 - float(self.free_EI.double().mean())

    @property
    def free_energy(self) -> float:
        """Share of Σ r_i s_j that is left unblocked, 0 to 1; 0 where nothing is at stake."""
        energy_EI = self.energy_EI
        total = float(energy_EI.sum())
        return float((energy_EI * self.free_EI).sum()) / total if total > 0 else 0.0


def everything_free(width: int, head_width: int) -> UpdateSpace:
    """The space of a head from which nothing must be kept, in the original coordinates."""
    return free_in(identity_basis(width), head_width)


def free_in(outputs: EigenBasis, head_width: int) -> UpdateSpace:
    """The space of a head from which nothing must be kept, in given output coordinates."""
    return UpdateSpace(
        outputs=outputs,
        inputs=identity_basis(head_width),
        free_EI=torch.ones(outputs.width, head_width, dtype=torch.bool),
    )


def rectangular_mask(outputs: EigenBasis, inputs: EigenBasis, kept_energy: float) -> Tensor:
    """Free entries (bool, E × I): all but those where both directions are protected.

    Protected are the leading directions that keep `kept_energy` of the trace on either side: the
    dual-sided projection of arXiv 2503.14963, made elementwise.
    Raises ValueError if `kept_energy` is not between 0 and 1.
    """
    free_EI = torch.ones(outputs.width, inputs.width, dtype=torch.bool)
    free_EI[: outputs.rank_at(kept_energy), : inputs.rank_at(kept_energy)] = False
    return free_EI


def product_mask(outputs: EigenBasis, inputs: EigenBasis, kept_energy: float) -> Tensor:
    """Free entries (bool, E × I): the smallest energies that hold 1 − `kept_energy` of all.

    The fewest blocked entries for that bound. Of entries with equal energy the first in row-major
    order are freed while they fit. Energies that are rounding of zero are free even where
    everything is kept. Raises ValueError if `kept_energy` is not between 0 and 1.
    """
    energy_EI = torch.outer(outputs.values_I, inputs.values_I)
    if outputs.rank_at(kept_energy) == 0 or inputs.rank_at(kept_energy) == 0:
        return torch.ones_like(energy_EI, dtype=torch.bool)  # Nothing is kept.
    most = (1 - kept_energy) * float(outputs.values_I.sum() * inputs.values_I.sum())
    low, high = _bracket(outputs.values_I, inputs.values_I, most)
    free_EI = energy_EI <= low
    doubtful_EI = (energy_EI <= high) & ~free_EI
    left = most - float((energy_EI * free_EI).sum())
    free_EI[doubtful_EI] = _smallest_within(energy_EI[doubtful_EI], left)
    return free_EI


def _bracket(outputs_E: Tensor, inputs_I: Tensor, most: float) -> tuple[float, float]:
    """Two energies: all entries up to the first hold at most `most`, up to the second more.

    A million products need no sorting: with one spectrum sorted, the energy below a threshold is
    one binary search and one look-up per output direction.
    """
    rising_I = inputs_I.sort().values
    below_I = torch.cat([rising_I.new_zeros(1), rising_I.cumsum(0)])
    high = float(outputs_E.max() * inputs_I.max())
    low = _ZERO * high
    for _ in range(_HALVINGS):
        middle = math.sqrt(low) * math.sqrt(high)
        count_E = torch.searchsorted(rising_I, middle / outputs_E, right=True)
        within = float((outputs_E * below_I[count_E]).sum()) <= most
        low, high = (middle, high) if within else (low, middle)
    return low * (1 - _ROUNDING), high * (1 + _ROUNDING)


def _smallest_within(energy_N: Tensor, most: float) -> Tensor:
    """Which of the energies, taken by rising size, fit into `most` (bool, N)."""
    rising_N, order_N = energy_N.sort(stable=True)
    fits_N = torch.zeros(len(energy_N), dtype=torch.bool)
    fits_N[order_N] = rising_N.cumsum(0) <= most
    return fits_N
