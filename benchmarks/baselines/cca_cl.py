"""CCA-CL: canonical correlation analysis of the sums of all tasks, for pairs in place of classes.

Shapes: E width of the embeddings, K directions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.cca import CCA
from cmcl.contract.modality import ModalityPair
from workers.nullspace.centred import centred
from workers.nullspace.closed_form import Directions
from workers.nullspace.moments import PairMoments
from workers.nullspace.two_folds import Choice, best_choice


@dataclass(frozen=True)
class CCACL(CCA):
    """CCA-CL (CVPR 2026, "Subspace Alignment for CLIP-based Continual Learning via Canonical Correlation Analysis").

    Covariances of images and texts are summed over tasks, each centred by itself; both sides of a direction are
    multiplied by its correlation ρ, and directions are kept until they have the share `energy` of Σ ρ². As in the authors' program
    (github.com/zhwhu/CCA-CL), but for: no fine-tuning of the encoder on the first task, no random Fourier features before
    the analysis, and ridges chosen by two halves of the training rows in place of 10⁻⁴.
    """

    energy: float = 0.999

    def choose(self, pair: ModalityPair, halves: tuple[PairMoments, PairMoments]) -> Choice:
        one, other = (centred(half, 1.0) for half in halves)
        found = best_choice((one, other))
        return Choice(found.ridges, found.score)

    def mixing(self, group: Directions, width: int) -> Tensor:
        energy_K = group.values_K.square().cumsum(0)
        before_K = torch.cat([energy_K.new_zeros(1), energy_K[:-1]])
        return group.scaling(width) * (before_K < self.energy * energy_K[-1])
