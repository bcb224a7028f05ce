"""Ridge regression onto a frozen space: each modality onto its partners' embeddings, in closed form.

Shapes: E width of the embeddings, I and J widths of what two heads read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from cmcl.contract.model import ModelSpec
from workers.methods.method import (
    DatasetStatistics,
    Method,
    MethodState,
    Solved,
    TrainingContext,
)
from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.nullspace.centred import components
from workers.nullspace.closed_form import typical_variance
from workers.nullspace.moments import PairMoments
from workers.nullspace.two_folds import RIDGES, Choice


@dataclass(frozen=True)
class RidgeOntoFrozen(Method):
    """W_u = argmin Σ_s w_s (E_s |W x_u − W_v x_v|² + e |W|²), over the datasets s of u with a partner v before it.

    Analytic continual learning, as the adapters of RAIL (arXiv 2406.18868): the solution from the sums of all
    datasets is what the recursive update reaches, so nothing is forgotten. RAIL expands features by random
    features or a kernel; here heads read what the spec's lift appends.

    Modalities have an order. Of the first pair, `frozen` comes first if it is one of the two, else the second
    one: its head stays as it began (the identity where widths agree), with a bias that subtracts the mean of
    its first dataset. Every further modality comes when it is first seen, and is regressed onto partners before
    it. Of two new ones one is frozen in the same way. A dataset weighs w = √rows, and e is `ridge` times the
    modality's typical variance; it does not hold for the bias.
    """

    temperature: float
    ridge: float = 0.003
    frozen: str = "text"

    solves = True

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise ValueError(f"ridge is {self.ridge}; permitted is more than 0")

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> "RidgeOntoFrozen":
        return cls(spec.training.temperature)

    def choose(self, halves: tuple[PairMoments, PairMoments]) -> Choice:
        # The memory needs a ridge of each modality. This method has its own.
        return Choice((RIDGES[0], RIDGES[0]), 0.0)

    def solve(self, context: TrainingContext, memory: Memory) -> Solved:
        order = self._order(context)
        weights: dict[str, Tensor] = {}
        # Partners before a modality are solved before it, so their heads are today's.
        for modality in sorted(order, key=order.__getitem__):
            partners = _partners_before(modality, order, memory)
            if partners:
                weights[modality] = self._regressed(modality, partners, weights)
            else:
                weights[modality] = self._frozen(modality, context, memory)
        groups = tuple(components(memory.centred))
        return Solved(weights, 0.0, 0, self.temperature, context.heads.width, groups)

    def _frozen(self, modality: str, context: TrainingContext, memory: Memory) -> Tensor:
        """The parent's head, or a new one with the bias −W μ (E × I)."""
        head_EI, inputs = context.heads.weights[modality], memory.inputs_of(modality)
        if _PLACE + modality in context.method_state or inputs is None:
            return head_EI
        mean_F = inputs.mean_II[:-1, -1].to(head_EI)
        return torch.cat([head_EI[:, :-1], -(head_EI[:, :-1] @ mean_F)[:, None]], dim=1)

    def _regressed(
        self,
        modality: str,
        partners: Mapping[str, tuple[Tensor, Tensor]],
        weights: Mapping[str, Tensor],
    ) -> Tensor:
        """W (C + e D) = Σ_v W_v X_vu (E × I), solved for W in float64. D is I without the constant's 1."""
        wanted_EI = reduce(
            add,
            (weights[name].double() @ cross_IJ.mT for name, (_, cross_IJ) in partners.items()),
        )
        moment_II = reduce(add, (own_II for own_II, _ in partners.values()))
        # The last entry is Σ w · 1, and the last column Σ w E x.
        weight, mean_F = moment_II[-1, -1], moment_II[:-1, -1] / moment_II[-1, -1]
        variance = typical_variance(moment_II[:-1, :-1] / weight - torch.outer(mean_F, mean_F))
        ridged_II = moment_II.clone()
        ridged_II.diagonal()[:-1] += self.ridge * variance * weight
        found_EI: Tensor = torch.linalg.solve(ridged_II, wanted_EI, left=False)
        return found_EI.float()

    def _order(self, context: TrainingContext) -> dict[str, int]:
        """The place of each modality, those of the new pair included."""
        order = {
            name.removeprefix(_PLACE): int(place)
            for name, place in context.method_state.items()
            if name.startswith(_PLACE)
        }
        first, second = context.pair.modalities
        pair = (first, second) if first == self.frozen else (second, first)
        for modality in pair:
            order.setdefault(modality, len(order))
        return order

    def next_state(
        self, context: TrainingContext, trained: ModalityHeads, statistics: DatasetStatistics
    ) -> MethodState:
        places = self._order(context).items()
        return {**context.method_state, **{_PLACE + m: torch.tensor(at) for m, at in places}}


_PLACE = "ridge/place/"


def _partners_before(
    modality: str, order: Mapping[str, int], memory: Memory
) -> dict[str, tuple[Tensor, Tensor]]:
    """By partner: Σ_s w_s E x_u x_uᵀ (I × I) and Σ_s w_s E x_u x_vᵀ (I × J), with the constant 1."""
    found = {}
    for (first, second), sums in memory.centred.items():
        if modality not in (first, second):
            continue
        oriented, partner = (sums, second) if modality == first else (sums.swapped(), first)
        if order[partner] < order[modality]:
            mean, weight = oriented.pooled.mean, oriented.weight
            found[partner] = weight * mean.first.sum_II, weight * mean.cross_IJ
    return found
