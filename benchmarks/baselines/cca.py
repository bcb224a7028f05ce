"""Canonical correlation analysis (CCA) of all modalities, in closed form from moments.

Shapes: E width of the embeddings, K directions, I width of what a head reads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.methods.method import Method, Solved, TrainingContext
from workers.model.memory import Memory
from workers.nullspace.centred import pooled
from workers.nullspace.closed_form import SMALLEST_RIDGE, Directions, solve
from workers.nullspace.moments import PairMoments
from workers.nullspace.two_folds import Choice


@dataclass(frozen=True)
class CCA(Method):
    """Heads are the E leading canonical directions, max Σ_pairs w_uᵀ X_uv w_v at unit variance.

    For one pair that is CCA (Hotelling 1936), for several connected ones its extension to many views by the sum
    of correlations (Kettenring 1971). Moments of datasets add up, so heads are those of all datasets at once.
    Every variance grows by `ridge` times the modality's typical one, where features hardly vary.

    The policy `improve` of the product begins with the same directions. It chooses ridges and the number of
    directions by held-out halves, lifts features, scales directions by their correlation, polishes them, and aligns
    them with the parent.
    """

    temperature: float
    ridge: float = 0.02

    solves = True

    def __post_init__(self) -> None:
        if not SMALLEST_RIDGE <= self.ridge <= 1:
            raise ValueError(f"ridge is {self.ridge}; permitted are {SMALLEST_RIDGE} to 1")

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> "CCA":
        return cls(spec.training.temperature)

    def choose(self, pair: ModalityPair, halves: tuple[PairMoments, PairMoments]) -> Choice:
        return Choice((self.ridge, self.ridge), 0.0)

    def solve(self, context: TrainingContext, memory: Memory) -> Solved:
        width, moments = context.heads.width, pooled(memory.centred)
        ridges = {name: each.ridge for name, each in memory.ridges.items()}
        solution = solve(moments, ridges, width, torch.float32)
        weights = {
            name: weight_EI.float()
            for group in solution.groups
            for name, weight_EI in group.weights(self.mixing(group, width)).items()
        }
        groups = tuple(tuple(sorted(group.heads)) for group in solution.groups)
        return Solved(weights, 0.0, 0, self.temperature, solution.rank, groups)

    def mixing(self, group: Directions, width: int) -> Tensor:
        """What embeddings are made of (E × K): of direction k as it is."""
        return group.scaling(width).sign()


@dataclass(frozen=True)
class CSA(CCA):
    """Canonical similarity analysis (arXiv 2410.07610): scores are Σ_k ρ_k a_k b_k, with the correlations ρ.

    Each side of a direction is multiplied by √ρ_k. There the score is divided by the lengths of a and b, and here
    by those of √ρ a and √ρ b, since embeddings are compared at unit length.
    """

    def mixing(self, group: Directions, width: int) -> Tensor:
        return group.scaling(width).sqrt()
