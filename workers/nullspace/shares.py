"""Disjoint shares of the free outputs: a pair that comes again keeps its old scores.

Shapes: E width of the embeddings, I width of a side's features, K and L free outputs of the two
sides, N those that are free to both alike.

The first-order mask is exact while one head of an old pair moves. When both move,
x_uᵀ Δ_uᵀ Δ_v x_v remains. It is zero when what the two heads may do to *old* inputs lies in
orthogonal spaces. Each side's free outputs (what its protected ones leave) get a basis such that
the i-th direction of one side meets the i-th of the other and no further: the principal vectors
of the two spaces. Dealt out by turns they are two shares A_u ⟂ A_v, each about half of what the
head might have moved. Along old inputs head u moves outputs in A_u alone and head v in A_v alone;
along new inputs the first-order mask stands as it is.
docs/decisions/0005-a-pair-that-comes-again.md has the alternatives.
"""

import torch
from torch import Tensor

from workers.nullspace.mask import MaskRule, UpdateSpace
from workers.nullspace.subspace import EigenBasis, directions_within

# Principal vectors whose cosine is 1 to rounding are one direction, free to both sides.
_ROUNDING = 1e-12


def disjoint_shares(
    first: UpdateSpace, second: UpdateSpace, kept_energy: float, rule: MaskRule
) -> tuple[UpdateSpace, UpdateSpace]:
    """The spaces of the two heads of a pair that already has datasets of that very pair.

    Each gets a new output basis [own protected outputs, the rest, own share], whose values are the
    Rayleigh quotients of its output moment, and a mask: `rule` in that basis and, along the inputs
    that hold `kept_energy`, nothing but the own share. On old data of exactly low rank, at
    `kept_energy` = 1, Δ_u x_u and Δ_v x_v are orthogonal for all old rows. A side whose protected
    outputs fill the space may not move along old inputs at all; the other then needs no sharing.

    Raises ValueError if the two sides differ in width or `kept_energy` is not between 0 and 1.
    """
    if first.outputs.width != second.outputs.width:
        raise ValueError(
            f"first head has {first.outputs.width} outputs, second head {second.outputs.width}"
        )
    first_EK, second_EL = _matched(
        first.outputs.trailing(kept_energy),
        second.outputs.trailing(kept_energy),
        _unit_trace(first.outputs) + _unit_trace(second.outputs),
    )
    matched = min(first_EK.shape[1], second_EL.shape[1])
    return (
        _share(first, first_EK, _turns(first_EK.shape[1], matched, 0), kept_energy, rule),
        _share(second, second_EL, _turns(second_EL.shape[1], matched, 1), kept_energy, rule),
    )


def _matched(first_EK: Tensor, second_EL: Tensor, both_EE: Tensor) -> tuple[Tensor, Tensor]:
    """The same two spaces in bases with  firstᵀ second = [diagonal, 0], largest first.

    Directions that are free to both sides alike have cosine 1 and so no order of their own. They
    are sorted by what the sum of both output moments has there, so that by turns both heads get
    alike ones.
    """
    if min(first_EK.shape[1], second_EL.shape[1]) == 0:
        return first_EK, second_EL
    left_KK, cosines, right_LL = torch.linalg.svd(first_EK.mT @ second_EL)
    first_EK, second_EL = first_EK @ left_KK, second_EL @ right_LL.mT
    alike = int((cosines > 1 - _ROUNDING).sum())
    turn_NN = _order_of(first_EK[:, :alike], both_EE)
    first_EK[:, :alike] = first_EK[:, :alike] @ turn_NN
    second_EL[:, :alike] = second_EL[:, :alike] @ turn_NN
    return first_EK, second_EL


def _order_of(alike_EN: Tensor, moment_EE: Tensor) -> Tensor:
    """The rotation (N × N) to a moment's directions in a span, which depend on the span alone."""
    generator = torch.Generator().manual_seed(0)
    probe_EN = torch.randn(alike_EN.shape, generator=generator, dtype=torch.float64)
    canonical_EN = torch.linalg.qr(alike_EN @ (alike_EN.mT @ probe_EN)).Q
    return alike_EN.mT @ directions_within(moment_EE, canonical_EN)


def _turns(free: int, matched: int, offset: int) -> Tensor:
    """Which free outputs are a side's own (bool): every other one, and those nothing answers to."""
    index = torch.arange(free)
    return (index >= matched) | (index % 2 == offset)


def _share(
    old: UpdateSpace, free_EK: Tensor, mine_K: Tensor, kept_energy: float, rule: MaskRule
) -> UpdateSpace:
    moment_EE, protected_EK = old.outputs.moment_II, old.outputs.leading(kept_energy)
    rest_EK = directions_within(moment_EE, free_EK[:, ~mine_K])
    own_EK = directions_within(moment_EE, free_EK[:, mine_K])
    vectors_EE = torch.cat([protected_EK, rest_EK, own_EK], dim=1)
    values_E = (vectors_EE * (moment_EE @ vectors_EE)).sum(0).clamp_min(0)
    outputs = EigenBasis(vectors_EE, values_E)
    free_EI = rule(outputs, old.inputs, kept_energy)
    free_EI[: outputs.width - own_EK.shape[1], : old.inputs.rank_at(kept_energy)] = False
    return UpdateSpace(outputs, old.inputs, free_EI)


def _unit_trace(basis: EigenBasis) -> Tensor:
    """The moment with trace 1: the two sides may differ in scale by orders of magnitude."""
    total = float(basis.values_I.sum())
    return basis.moment_II / total if total > 0 else basis.moment_II
