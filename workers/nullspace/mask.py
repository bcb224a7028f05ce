"""Which entries of an update may move, in the eigen-coordinates of its inputs and outputs.

Shapes: E width of the embeddings, I width of the features, N entries in doubt, K and L free
outputs of the two sides of a pair.

By equation (4) a change Δ of a head moves old scores by Σ r_i s_j (Vᵀ Δ U)_ij² in sum of squares,
with (s, U) the eigenpairs of the earlier inputs and (r, V) those of the partners' embeddings. In
the coordinates M = Vᵀ Δ U interference is elementwise, and so is protection. r_i s_j is an entry's
*energy*. `product_mask` blocks the entries of highest energy.

That is first order: exact while one head of an old pair moves. If a pair is trained again both of
its heads move, and x_uᵀ Δ_uᵀ Δ_v x_v remains (5). `disjoint_shares` makes it zero: what the two heads
may do to *old* inputs lies in orthogonal spaces A_u ⟂ A_v.
docs/decisions/0005-a-pair-that-comes-again.md has the alternatives.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.nullspace.subspace import EigenBasis, directions_within, identity_basis, is_orthonormal

# Entries below this share of the largest energy are rounding of zero in float64.
_ZERO = 1e-12
# Bisections of twelve decades: the interval that is left is a millionth of one energy wide.
_HALVINGS = 25
_ROUNDING = 1e-9
# Principal vectors whose cosine is 1 to rounding are one direction, free to both sides.
_ALIKE = 1e-12

MaskRule = Callable[[EigenBasis, EigenBasis, float], Tensor]
"""(outputs, inputs, kept_energy) → free entries (bool, E × I)."""


@dataclass(frozen=True)
class UpdateSpace:
    """Where one head trains: M in  W = W₀ + V M Uᵀ, and which entries of M may move.

    `outputs` is V with its eigenvalues r, `inputs` is U with s; `free_EI` is True where M may move.
    """

    outputs: EigenBasis  # V (E × E): row i of M writes along its column i
    inputs: EigenBasis  # U (I × I): column j of M reads along its column j
    free_EI: Tensor

    def __post_init__(self) -> None:
        assert self.free_EI.shape == (self.outputs.width, self.inputs.width)
        assert self.free_EI.dtype == torch.bool

    @property
    def energy_EI(self) -> Tensor:
        """r_i s_j: what a unit of each entry adds to the summed squares of old score changes."""
        # (4) for one entry: Δ = v_i u_jᵀ gives tr(C Δᵀ D Δ) = (v_iᵀ D v_i) (u_jᵀ C u_j) = r_i s_j.
        return torch.outer(self.outputs.values_I, self.inputs.values_I)

    @property
    def blocked_share(self) -> float:
        """Share of the entries that may not move, 0 to 1."""
        return 1.0 - float(self.free_EI.double().mean())


def everything_free(width: int, head_width: int) -> UpdateSpace:
    """The space of a head without protection, in the original coordinates."""
    return free_in(identity_basis(width), head_width)


def free_in(outputs: EigenBasis, head_width: int) -> UpdateSpace:
    """The space of a head without protection, in given output coordinates."""
    # s = 0: the head has read nothing yet, so no entry has energy and none needs to be blocked.
    return UpdateSpace(
        outputs=outputs,
        inputs=identity_basis(head_width),
        free_EI=torch.ones(outputs.width, head_width, dtype=torch.bool),
    )


# --- The product rule ---------------------------------------------------------------------------


def product_mask(outputs: EigenBasis, inputs: EigenBasis, kept_energy: float) -> Tensor:
    """Free entries (bool, E × I): the smallest energies that hold 1 − `kept_energy` of all.

    No other mask blocks fewer entries for that bound. Of entries with equal energy the first in
    row-major order are freed while they fit. Energies that are rounding of zero are free even if
    everything is kept. Raises ValueError if `kept_energy` is not between 0 and 1.
    """
    energy_EI = torch.outer(outputs.values_I, inputs.values_I)
    if outputs.rank_at(kept_energy) == 0 or inputs.rank_at(kept_energy) == 0:
        return torch.ones_like(energy_EI, dtype=torch.bool)  # Nothing is kept.
    # Σ_ij r_i s_j = (Σ r_i)(Σ s_j): the budget of free energy without a sum over the products.
    most = (1 - kept_energy) * float(outputs.values_I.sum() * inputs.values_I.sum())
    # Freeing entries by rising energy until the budget is used is optimal: as many other entries would
    # spend at least as much.
    low, high = _bracket(outputs.values_I, inputs.values_I, most)
    assert low <= high
    # Below `low` everything fits, above `high` nothing does. Only what is between needs sorting.
    free_EI = energy_EI <= low
    doubtful_EI = (energy_EI <= high) & ~free_EI
    # What the entries below the bracket leave of the budget goes to those inside it.
    left = most - float((energy_EI * free_EI).sum())
    free_EI[doubtful_EI] = _smallest_within(energy_EI[doubtful_EI], left)
    return free_EI


def _bracket(outputs_E: Tensor, inputs_I: Tensor, most: float) -> tuple[float, float]:
    """Two energies: all entries up to the first hold at most `most`, up to the second more.

    A million products need no sorting. With t a threshold, the entries of output i below it are
    those with s_j ≤ t / r_i. With s sorted, one binary search per output finds how many there are,
    and the running sum of s their energy: r_i · Σ_{s_j ≤ t / r_i} s_j.
    """
    rising_I = inputs_I.sort().values
    # below_I[k] is the sum of the k smallest s (I + 1 numbers, from 0 to the trace).
    below_I = torch.cat([rising_I.new_zeros(1), rising_I.cumsum(0)])
    high = float(outputs_E.max() * inputs_I.max())
    low = _ZERO * high
    for _ in range(_HALVINGS):
        # The geometric mean: energies spread over decades. Roots first, or the product underflows.
        middle = math.sqrt(low) * math.sqrt(high)
        # For output i: how many s_j are at most t / r_i. At r_i = 0 that is infinite, so all of them.
        count_E = torch.searchsorted(rising_I, middle / outputs_E, right=True)
        within = float((outputs_E * below_I[count_E]).sum()) <= most
        low, high = (middle, high) if within else (low, middle)
    # r_i s_j and t / r_i round differently: widen, so that no entry is on the wrong side.
    return low * (1 - _ROUNDING), high * (1 + _ROUNDING)


def _smallest_within(energy_N: Tensor, most: float) -> Tensor:
    """Which of the energies, taken by rising size, fit into `most` (bool, N)."""
    rising_N, order_N = energy_N.sort(stable=True)
    fits_N = torch.zeros(len(energy_N), dtype=torch.bool)
    fits_N[order_N] = rising_N.cumsum(0) <= most
    return fits_N


# --- Disjoint shares, for a pair that is trained again ------------------------------------------


def disjoint_shares(
    first: UpdateSpace, second: UpdateSpace, kept_energy: float, rule: MaskRule
) -> tuple[UpdateSpace, UpdateSpace]:
    """The spaces of the two heads of a pair that already has datasets of that very pair.

    Each side's free outputs (what its protected ones leave) are matched with the other's by
    principal vectors and dealt alternately. Each space has a new output basis [own protected
    outputs, the rest, own share], whose values are the Rayleigh quotients of its output moment, and
    a mask: `rule` in that basis and, along the inputs that hold `kept_energy`, nothing but the own
    share. On old data of exactly low rank, at `kept_energy` = 1, Δ_u x_u and Δ_v x_v are orthogonal
    for all old rows. A side whose protected outputs fill the space may not move along old inputs at
    all, and the other then needs no sharing.

    Raises ValueError if the two sides differ in width or `kept_energy` is not between 0 and 1.
    """
    if first.outputs.width != second.outputs.width:
        raise ValueError(
            f"first head has {first.outputs.width} outputs, second head {second.outputs.width}"
        )
    # K and L free outputs, behind those that hold `kept_energy`. How alike the two sides' free spaces
    # are is arbitrary: principal vectors show which direction of one overlaps with which of the other.
    first_EK, second_EL = _principal_vectors(
        first.outputs.trailing(kept_energy),
        second.outputs.trailing(kept_energy),
        _unit_trace(first.outputs) + _unit_trace(second.outputs),
    )
    # In each overlapping couple only one side gets its direction: the first side
    # the even ones, the second the odd ones.
    matched = min(first_EK.shape[1], second_EL.shape[1])
    first_K = _dealt(first_EK.shape[1], matched, 0)
    second_L = _dealt(second_EL.shape[1], matched, 1)
    assert not (first_K[:matched] & second_L[:matched]).any(), "both sides get a direction"
    return (
        _share(first, first_EK, first_K, kept_energy, rule),
        _share(second, second_EL, second_L, kept_energy, rule),
    )


def _principal_vectors(
    first_EK: Tensor, second_EL: Tensor, both_EE: Tensor
) -> tuple[Tensor, Tensor]:
    """The same two spaces in bases with  firstᵀ second = [diagonal, 0], largest first.

    Then direction i of one side is orthogonal to every direction of the other but the i-th, and
    giving i to one side only makes the two shares orthogonal.

    Directions that are free to both sides have cosine 1 and no order of their own. They are sorted
    by what the sum of both output moments has there, so that alternate ones are alike.
    """
    if min(first_EK.shape[1], second_EL.shape[1]) == 0:
        return first_EK, second_EL
    # Fᵀ S = L diag(cosines) Rᵀ, so (F L)ᵀ (S R) = diag(cosines). The cosines are those of the
    # principal angles between the two spaces.
    left_KK, cosines, right_LL = torch.linalg.svd(first_EK.mT @ second_EL)
    first_EK, second_EL = first_EK @ left_KK, second_EL @ right_LL.mT
    assert cosines[0] <= 1 + 1e-6, "a cosine is above 1"
    alike = int((cosines > 1 - _ALIKE).sum())
    # The same rotation on both sides leaves the diagonal block of ones as it is.
    rotation_NN = _sorting_rotation(first_EK[:, :alike], both_EE)
    first_EK[:, :alike] = first_EK[:, :alike] @ rotation_NN
    second_EL[:, :alike] = second_EL[:, :alike] @ rotation_NN
    return first_EK, second_EL


def _sorting_rotation(alike_EN: Tensor, moment_EE: Tensor) -> Tensor:
    """The rotation (N × N) to a moment's directions in a span, which depend on the span alone."""
    generator = torch.Generator().manual_seed(0)
    probe_EN = torch.randn(alike_EN.shape, generator=generator, dtype=torch.float64)
    # As in `subspace._canonical`: the SVD's basis of equal cosines is arbitrary, this one is not.
    canonical_EN = torch.linalg.qr(alike_EN @ (alike_EN.mT @ probe_EN)).Q
    return alike_EN.mT @ directions_within(moment_EE, canonical_EN)


def _dealt(free: int, matched: int, offset: int) -> Tensor:
    """Which free outputs are a side's own (bool): every other one, and those without a match."""
    # The side with more free outputs keeps all that the other has no counterpart for.
    index = torch.arange(free)
    return (index >= matched) | (index % 2 == offset)


def _share(
    old: UpdateSpace, free_EK: Tensor, own_K: Tensor, kept_energy: float, rule: MaskRule
) -> UpdateSpace:
    """One side's space: its basis [protected, rest, own share] and the mask in it."""
    moment_EE, protected_EK = old.outputs.moment_II, old.outputs.leading(kept_energy)
    # Within the rest and within the own share any rotation is allowed: take the eigenvectors of the
    # moment there, so that the product rule sees energies as spread out as possible.
    rest_EK = directions_within(moment_EE, free_EK[:, ~own_K])
    own_EK = directions_within(moment_EE, free_EK[:, own_K])
    vectors_EE = torch.cat([protected_EK, rest_EK, own_EK], dim=1)
    assert is_orthonormal(vectors_EE, 1e-6)
    # vᵀ D v for each column v: the diagonal of Vᵀ D V without the rest of it.
    values_E = (vectors_EE * (moment_EE @ vectors_EE)).sum(0).clamp_min(0)
    outputs = EigenBasis(vectors_EE, values_E)
    # The rule first, as for one head that moves by itself; then what both heads together need.
    free_EI = rule(outputs, old.inputs, kept_energy)
    # Along old inputs (the leading ones) only the own share, the last outputs, may move.
    free_EI[: outputs.width - own_EK.shape[1], : old.inputs.rank_at(kept_energy)] = False
    return UpdateSpace(outputs, old.inputs, free_EI)


def _unit_trace(basis: EigenBasis) -> Tensor:
    """The moment with trace 1: the two sides may differ in scale by orders of magnitude."""
    total = float(basis.values_I.sum())
    return basis.moment_II / total if total > 0 else basis.moment_II
