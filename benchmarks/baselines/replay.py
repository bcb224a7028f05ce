"""Replay from moments, in what a mask leaves free: the default of an early version of this project.

Old scores move, for the better. On nine streams and widths it is 0.4 points of R@1 and 0.3 of R@10 behind `preserve`,
for twice the CPU time and without a bound (docs/log.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.moment_replay import MomentReplay
from benchmarks.baselines.sampled_replay import SampledReplay
from workers.methods.method import Batch, State, TrainingContext, UpdateRule
from workers.methods.preserve import Preserve, joining
from workers.model.pair import PairInEigenCoordinates
from workers.nullspace.moments import PairMoments

# A term that is added k-fold in every k-th update has the same mean gradient at a k-th of the cost.
# At these intervals results are equal within the noise of seeds (docs/log.md).
_MOMENTS_EVERY, _SAMPLED_EVERY = 4, 2
# Weight of sampled rows relative to that of whole datasets.
_SAMPLED_SHARE = 0.3


@dataclass(frozen=True)
class Replay(Preserve):
    """The mask of `preserve`, and earlier datasets that keep contributing to the loss through their moments.

    `weight`: of the earlier datasets' loss (moment_replay.py, sampled_replay.py).
    """

    weight: float = 1.0

    def start(
        self, context: TrainingContext, halves: tuple[PairMoments, PairMoments]
    ) -> Mapping[str, Tensor]:
        """Let a new modality join its partner's space. Two are trained: solved they are no better (docs/decisions/0048)."""
        return joining(context, halves)

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        return _ReplayRule(MomentReplay(context, pair), SampledReplay(context, pair), self.weight)


@dataclass
class _ReplayRule(UpdateRule):
    """The loss of the batch, plus replay of earlier datasets in some of the updates.

    Every fourth update adds the quadratic loss of whole datasets, every second one InfoNCE of sampled rows.
    """

    moments: MomentReplay
    sampled: SampledReplay
    weight: float
    updates: int = 0

    def backward(self, batch: Batch) -> Tensor:
        # InfoNCE of the batch, and the replayed losses times how seldom they are added.
        loss = batch.loss()
        total = loss
        if self.updates % _SAMPLED_EVERY == 0:
            replayed = self.sampled.loss(batch.group)
            total = total + self.weight * _SAMPLED_SHARE * _SAMPLED_EVERY * replayed
        if self.updates % _MOMENTS_EVERY == 0:
            total = total + self.weight * _MOMENTS_EVERY * self.moments.loss(batch.group)
        total.backward()  # type: ignore[no-untyped-call]
        # Reported is the loss of the new dataset alone: replay would jump with its intervals.
        self.updates += 1
        return loss.detach()

    def state(self) -> State:
        return {"updates": torch.tensor(self.updates), "sampled": self.sampled.random.get_state()}

    def restore(self, state: State) -> None:
        self.updates = int(state["updates"])
        self.sampled.random.set_state(state["sampled"])
