"""Gaussian replay: the loss on rows that are drawn from the moments of earlier pairs.

Shapes: those of sampled_replay.py.
"""

from dataclasses import dataclass

from torch import Tensor

from benchmarks.baselines.sampled_replay import SampledReplay
from workers.methods.method import Batch, Method, State, TrainingContext, UpdateRule
from workers.model.pair import PairInEigenCoordinates


@dataclass(frozen=True)
class GaussianReplay(Method):
    """L + w Σ_s L(rows ~ N(μ_s, C_s)), over the earlier datasets s that share a head with the pair.

    μ and C are the mean and the covariance of both sides of a pair together, pooled over its datasets. In each
    update one pair is drawn, in proportion to its datasets, and a batch of its rows; times the number of all
    these datasets, that is the sum in expectation. Class-incremental methods draw from a Gaussian for each
    class in the same way to train a classifier (AnaCP, arXiv 2511.13880).

    It is one of the three parts of `replay` (replay.py), which adds the quadratic loss of whole datasets and a mask.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight is {self.weight}; permitted are 0 and more")

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        return _GaussianReplayRule(self.weight, SampledReplay(context, pair))


class _GaussianReplayRule(UpdateRule):
    def __init__(self, weight: float, sampled: SampledReplay) -> None:
        self._weight, self._sampled = weight, sampled

    def backward(self, batch: Batch) -> Tensor:
        loss = batch.loss()
        total = loss + self._weight * self._sampled.loss(batch.group)
        total.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def state(self) -> State:
        return {"draws": self._sampled.random.get_state()}

    def restore(self, state: State) -> None:
        self._sampled.random.set_state(state["draws"])
