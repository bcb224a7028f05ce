"""Dark experience replay ++: DER, plus the loss on a second sample."""

from dataclasses import dataclass

from torch import Tensor

from benchmarks.baselines.der import DER, output_error
from benchmarks.baselines.replay_memory import Draws, MovingHeads, loss_on, memories_for
from cmcl.contract.model import TrainingSpec
from workers.methods.method import Batch, State, TrainingContext, UpdateRule
from workers.model.pair import PairInEigenCoordinates


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
        return _DERppRule(
            (self.alpha, self.beta), MovingHeads(context, pair), draws, context.training
        )


class _DERppRule(UpdateRule):
    def __init__(
        self,
        alpha_beta: tuple[float, float],
        heads: MovingHeads,
        draws: Draws,
        training: TrainingSpec,
    ) -> None:
        (self._alpha, self._beta), self._training = alpha_beta, training
        self._heads, self._draws = heads, draws

    def backward(self, batch: Batch) -> Tensor:
        loss, weights = batch.loss(), self._heads.now()
        error = output_error(weights, self._draws())
        memory = self._draws()
        replayed = loss_on(weights, memory.pair, memory.rows, self._training)
        (loss + self._alpha * error + self._beta * replayed).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def state(self) -> State:
        return self._draws.state()

    def restore(self, state: State) -> None:
        self._draws.restore(state)
