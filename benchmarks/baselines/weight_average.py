"""Weight averaging: heads are means over the datasets that they have learned.

Shapes: E width of the embeddings, I width of what a head reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.methods.method import Method, TrainingContext
from workers.model.heads import ModalityHeads


@dataclass(frozen=True)
class WeightAverage(Method):
    """W_n = W_{n-1} + (W − W_{n-1}) / n, with W trained on a head's n-th dataset from W_{n-1}.

    A uniform soup of the heads that each dataset leaves (arXiv 2203.05482), where training continues from the
    soup: nothing is stored but the heads, and the first dataset is training without protection.
    """

    def rate(self, learned: int) -> float:
        """The share of the trained head, after so many earlier datasets."""
        return 1 / (learned + 1)

    def finish(self, context: TrainingContext, trained: ModalityHeads) -> Mapping[str, Tensor]:
        before, after = context.heads.weights, trained.weights
        counts = {
            modality: sum(
                datasets for names, datasets in context.memory.datasets.items() if modality in names
            )
            for modality in context.pair.modalities
        }
        # A head without an earlier dataset has nothing to average with.
        return {
            modality: torch.lerp(before[modality], after[modality], self.rate(learned))
            for modality, learned in counts.items()
            if learned
        }


@dataclass(frozen=True)
class WeightEMA(WeightAverage):
    """W_n = W_{n-1} + α (W − W_{n-1}): an exponential moving average over datasets.

    Interpolation of slow and fast weights (arXiv 2211.03186), once for each dataset.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}; permitted is above 0 to 1")

    def rate(self, learned: int) -> float:
        return self.alpha
