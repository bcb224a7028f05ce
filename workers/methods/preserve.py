"""Policy `preserve`: train the two heads of a pair in what earlier datasets leave free. Old scores stay put.

Dual-sided null space (arXiv 2503.14963), made exact: blocked entries never move, and a penalty holds back the free
ones. Two modalities that have learned nothing are solved from moments, as `improve` solves all (improve.py).

Shapes: E width of the embeddings, I width of what a head reads.

A head is trained as W = W₀ + V M Uᵀ (workers/nullspace/mask.py), where V holds the output
directions that earlier datasets use and U their input directions. This file decides
four things: where the two heads start, which V and U (from the moments), which entries of M are
free (the mask), and what the loss of the free ones is (the update rule).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from cmcl.contract.model import ModelSpec
from workers.methods.improve import Improve
from workers.methods.method import (
    Batch,
    DatasetStatistics,
    Method,
    MethodState,
    Solved,
    TrainingContext,
    UpdateRule,
)
from workers.model.heads import ModalityHeads
from workers.model.pair import HeadInEigenCoordinates, PairInEigenCoordinates
from workers.nullspace.joining import joining_head
from workers.nullspace.mask import UpdateSpace, disjoint_shares, free_in, product_mask
from workers.nullspace.moments import PairMoments, SecondMoment
from workers.nullspace.subspace import EigenBasis, common_eigenbasis, eigenbasis

# Loss per unit of squared relative drift of earlier scores. A third of it learns as much and drifts by half as much
# again; three times as much loses a point (docs/decisions/0048).
_DRIFT_PENALTY = 30.0


@dataclass(frozen=True)
class Preserve(Method):
    """Block the entries whose input and output directions matter to earlier datasets.

    Inputs: all features the head has learned from. Outputs: the embeddings of all partners it
    really had, under today's heads. `kept_energy` is the share of Σ r_i s_j that is blocked. What is left free pays for
    its squared relative drift.
    """

    kept_energy: float

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> "Preserve":
        return cls(spec.kept_energy)

    def start(
        self, context: TrainingContext, halves: tuple[PairMoments, PairMoments]
    ) -> Mapping[str, Tensor] | Solved:
        """Solve two new modalities from the moments of their dataset; let one join its partner's space."""
        if len(_new_modalities(context)) == 2:
            return Improve(context.training, context.seed).solve_first(context, halves)
        return joining(context, halves)

    def update_spaces(self, context: TrainingContext) -> Mapping[str, UpdateSpace]:
        needs = {
            modality: protected_moments(context, modality) for modality in context.pair.modalities
        }
        known = [need.partners for need in needs.values() if need is not None]
        # The first dataset of both modalities: there is nothing to protect.
        if not known:
            return super().update_spaces(context)
        # The pair has been trained before. Both of its heads move, so W_uᵀ W_v changes by the
        # product of both changes too, which no mask of one head sees: separate their outputs.
        if context.memory.has(context.pair):
            return self._disjoint_spaces(context)
        # A score is an inner product of two embeddings, and is the same in every output basis that
        # both heads share. So one basis V for both saves a rotation (E × E) in every update.
        outputs = common_eigenbasis(known)
        return {
            modality: self._space(context, modality, outputs, need.inputs)
            if need
            else free_in(outputs, context.heads.weights[modality].shape[1])
            for modality, need in needs.items()
        }

    def _space(
        self, context: TrainingContext, modality: str, outputs: EigenBasis, inputs: SecondMoment
    ) -> UpdateSpace:
        # U and s of what this head has read, V and r of its partners' embeddings: the mask is the product
        # rule on r_i s_j, the energies of equation (4).
        basis = input_basis(context, modality, inputs)
        return UpdateSpace(outputs, basis, product_mask(outputs, basis, self.kept_energy))

    def _disjoint_spaces(self, context: TrainingContext) -> dict[str, UpdateSpace]:
        """Spaces in which the changes of the two heads along old inputs are orthogonal."""
        # Each head in the basis of its own outputs, as if it moved alone: E × I masks from (4). Both
        # have learned this very pair, so neither is None.
        spaces = [
            protected_space(context, modality, self.kept_energy)
            for modality in context.pair.modalities
        ]
        first, second = (space for space in spaces if space is not None)
        shares = disjoint_shares(first, second, self.kept_energy, product_mask)
        return dict(zip(context.pair.modalities, shares, strict=True))

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        return DriftPenalty(pair, _DRIFT_PENALTY)

    def next_state(
        self, context: TrainingContext, trained: ModalityHeads, statistics: DatasetStatistics
    ) -> MethodState:
        return with_input_bases(context, context.method_state, statistics.moments)


# --- Where a head starts ------------------------------------------------------------------------


def _new_modalities(context: TrainingContext) -> list[str]:
    return [name for name in context.pair.modalities if context.memory.inputs_of(name) is None]


def joining(context: TrainingContext, halves: tuple[PairMoments, PairMoments]) -> dict[str, Tensor]:
    """The head of the only new modality: its first embeddings are nearest to its partner's, (15)."""
    new = _new_modalities(context)
    if len(new) != 1:
        return {}
    ridge, other = Improve(context.training, context.seed).choose(context.pair, halves).ridges
    moments = halves[0] + halves[1]
    own, partner = context.pair.modalities
    if partner in new:
        ridge, own, partner, moments = other, partner, own, moments.swapped()
    partner_EJ = context.heads.weights[partner]
    return {own: joining_head(partner_EJ, moments.cross_IJ, moments.first, ridge)}


# --- What earlier datasets need of a head -------------------------------------------------------


@dataclass(frozen=True)
class HeadMoments:
    """Moments of a head's inputs (I × I) and of its partners' embeddings today (E × E)."""

    inputs: SecondMoment
    partners: SecondMoment


def protected_moments(context: TrainingContext, modality: str) -> HeadMoments | None:
    """Moments of a head's inputs (I × I) and of its partners' embeddings (E × E).

    A change of W_u moves the scores x_uᵀ W_uᵀ W_v x_v of all pairs that u has had. It is invisible
    if it reads no input that they had, or writes in no direction in which a W_v x_v lies. None if the head has
    learned nothing yet.
    """
    # C = Σ x xᵀ over all datasets of this head (I × I), and D = Σ W_v S_v W_vᵀ over its partners (E × E),
    # by equation (3) under the heads of the parent version.
    inputs = context.memory.inputs_of(modality)
    partners = context.memory.partners_of(modality, context.heads)
    if inputs is None or partners is None:
        return None
    return HeadMoments(inputs, partners)


def protected_space(
    context: TrainingContext, modality: str, kept_energy: float
) -> UpdateSpace | None:
    """The entries that the product rule leaves free if one head moves alone, in the basis of its own outputs."""
    need = protected_moments(context, modality)
    if need is None:
        return None
    outputs, inputs = eigenbasis(need.partners), input_basis(context, modality, need.inputs)
    return UpdateSpace(outputs, inputs, product_mask(outputs, inputs, kept_energy))


# --- Preserve: a penalty on first-order drift ---------------------------------------------------


class DriftPenalty(UpdateRule):
    """The loss plus `weight` times the squared relative drift that each head causes alone.

    In eigen-coordinates the first-order change of all earlier scores is elementwise, and so is its
    gradient, so that the penalty needs no matrix product:

        P(M) = weight · Σ r_i s_j M_ij² / Σ r_i s_j (VᵀW₀U)_ij²       squared relative drift
        ∂P/∂M_ij = 2 · weight · r_i s_j / (the same denominator) · M_ij
    """

    def __init__(self, pair: PairInEigenCoordinates, weight: float) -> None:
        slopes = [(head, _penalty_slope(head, weight)) for head in (pair.first, pair.second)]
        self._slopes = [(head, slope_EI) for head, slope_EI in slopes if slope_EI is not None]

    def backward(self, batch: Batch) -> Tensor:
        loss = super().backward(batch)
        for head, slope_EI in self._slopes:
            gradient_EI = head.change_EI.grad
            # ∂P/∂M = slope ∘ M (E × I), in place. The slope is zero on blocked entries, as is M.
            if gradient_EI is not None:
                gradient_EI.addcmul_(slope_EI, head.change_EI.detach())
        return loss


def _penalty_slope(head: HeadInEigenCoordinates, weight: float) -> Tensor | None:
    """∂P/∂M divided by M (E × I), zero where blocked. None if there is nothing to penalise."""
    energy_EI = head.space.energy_EI.to(head.start_EI.device)
    # Σ r_i s_j (VᵀW₀U)_ij²: the size of all earlier scores, up to the count of rows.
    size = float((energy_EI * head.start_EI.double().square()).sum())
    if weight == 0 or size <= 0:
        return None
    # Relative to the size, so that `weight` means the same for one dataset and for a hundred.
    return (2 * weight / size * energy_EI * head.free_EI).to(head.start_EI)


# --- State that outlives a dataset --------------------------------------------------------------
#
# What a head has read does not depend on any weights. So its eigenbasis is decomposed by the job
# that completes its moments, and not before the first update of the next job.


def with_input_bases(context: TrainingContext, state: MethodState, new: PairMoments) -> MethodState:
    """`state` and the bases of all that the two heads have read, the new dataset included."""
    bases: dict[str, Tensor] = dict(state)
    for modality, inputs in _inputs_with(context, new).items():
        # U (I × I) and s (I) of Σ x xᵀ, in float64.
        basis = eigenbasis(inputs)
        bases[_basis_key(modality, "vectors")] = basis.vectors_II
        bases[_basis_key(modality, "values")] = basis.values_I
    return bases


def input_basis(context: TrainingContext, modality: str, inputs: SecondMoment) -> EigenBasis:
    """The stored basis of these inputs, decomposed now if none is stored."""
    state, name = context.method_state, _basis_key(modality, "vectors")
    if name not in state:
        return eigenbasis(inputs)
    return EigenBasis(state[name], state[_basis_key(modality, "values")])


def _inputs_with(context: TrainingContext, new: PairMoments) -> dict[str, SecondMoment]:
    """By modality: summed moment of all that its head has read, the new dataset included."""
    total = {}
    for modality, moment in zip(context.pair.modalities, (new.first, new.second), strict=True):
        known = context.memory.inputs_of(modality)
        total[modality] = moment if known is None else known + moment
    return total


def _basis_key(modality: str, part: str) -> str:
    return f"basis/{modality}/{part}"
