"""Dark experience replay: keep the outputs of the heads for stored rows. DER++ adds the loss on a second sample.

Shapes: B drawn rows, E width of the embeddings.
"""

from dataclasses import dataclass

from torch import Tensor

from benchmarks.baselines.replay_memory import (
    Draws,
    MovingHeads,
    ReplayMethod,
    StoredRows,
    Weights,
    loss_on,
    memories_for,
    outputs,
)
from workers.methods.method import Batch, State, TrainingContext, UpdateRule
from workers.model.pair import PairInEigenCoordinates


@dataclass(frozen=True)
class DER(ReplayMethod):
    """L + α · MSE(W x, z) on a sample from the memories; z are the outputs when x was learned.

    arXiv 2004.07211. The sample has the size of a batch, or is the whole memory if that is smaller.
    The squared error |W x − z|² is averaged over rows, as in the paper: an average over entries
    would weaken it with growing width.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha >= 0:
            raise ValueError(f"alpha is {self.alpha}; permitted are 0 and more")

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        memories = memories_for(context, pair.rotation_EE.device)
        if not memories:
            return UpdateRule()
        draws = Draws(memories, context.training.batch_size, context.seed)
        return _DERRule(self.alpha, MovingHeads(context, pair), draws)


class _DERRule(UpdateRule):
    def __init__(self, alpha: float, heads: MovingHeads, draws: Draws) -> None:
        self._alpha, self._heads, self._draws = alpha, heads, draws

    def backward(self, batch: Batch) -> Tensor:
        loss = batch.loss()
        error = output_error(self._heads.now(), self._draws())
        (loss + self._alpha * error).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def state(self) -> State:
        return self._draws.state()

    def restore(self, state: State) -> None:
        self._draws.restore(state)


def output_error(weights: Weights, memory: StoredRows) -> Tensor:
    """Return the mean over rows of |W x − z|², summed over both sides.

    A side whose head is not trained adds only a constant.
    """
    first_BE, second_BE = outputs(weights, memory.pair, memory.rows)
    first_error = (first_BE - memory.first_outputs_NE).square().sum(dim=1).mean()
    second_error = (second_BE - memory.second_outputs_NE).square().sum(dim=1).mean()
    return first_error + second_error


@dataclass(frozen=True)
class DERpp(DER):
    """L + α · MSE(W x, z) on one sample + β · L on another (arXiv 2004.07211)."""

    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise ValueError(f"beta is {self.beta}; permitted are 0 and more")

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        memories = memories_for(context, pair.rotation_EE.device)
        if not memories:
            return UpdateRule()
        draws = Draws(memories, context.training.batch_size, context.seed)
        return _DERppRule((self.alpha, self.beta), MovingHeads(context, pair), draws, context)


class _DERppRule(UpdateRule):
    def __init__(
        self,
        alpha_beta: tuple[float, float],
        heads: MovingHeads,
        draws: Draws,
        context: TrainingContext,
    ) -> None:
        (self._alpha, self._beta), self._context = alpha_beta, context
        self._heads, self._draws = heads, draws

    def backward(self, batch: Batch) -> Tensor:
        loss, weights = batch.loss(), self._heads.now()
        error = output_error(weights, self._draws())
        memory = self._draws()
        replayed = loss_on(weights, memory.pair, memory.rows, self._context)
        (loss + self._alpha * error + self._beta * replayed).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def state(self) -> State:
        return self._draws.state()

    def restore(self, state: State) -> None:
        self._draws.restore(state)


@dataclass(frozen=True)
class DERppAllRows(DERpp):
    """DER++ that stores every row: what replay could reach without a bound on what is kept.

    Moments of features of width 1,024 with a lift of as many take more bytes than a dataset of the two streams has in
    rows, so this is also replay at equal bytes.
    """

    memory_rows: int = 1_000_000
