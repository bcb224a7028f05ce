"""The training loop: one dataset, two heads, the global batch spread over the ranks.

Shapes: B rows of the global batch, L of them local, F and G raw widths, E width of the embeddings.
"""

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from cmcl.contract.errors import TrainingDiverged
from workers.methods.port import Batch, Lesson, Method, Peers
from workers.model.heads import ModalityHeads
from workers.model.pair import (
    PairInEigenCoordinates,
    RotatedFeatures,
    trained_weight,
)
from workers.model.rows import PairedRows
from workers.nullspace.mask import UpdateSpace
from workers.train.average import TailAverage
from workers.train.distributed import World, averaged, gathered, share_of, summed
from workers.train.objective import GlobalLoss
from workers.train.optimizer import optimizer_for, optimizer_state, restore_optimizer
from workers.train.rows.order import Plan
from workers.train.rows.port import LocalBatch, Transform, TurnedRows
from workers.train.run import Run, Sight, Tensors, UpdateDone, part_of

Spaces = Mapping[str, UpdateSpace]

# Enough batches for a mean that is told with two digits.
_BATCHES_OF_MEAN = 200
# A loss that is not finite makes all later ones so. Ten at once cost one collective and one wait for
# the device; after every update, both would be a part of the update's time.
_UPDATES_PER_CHECK = 10


@dataclass(frozen=True)
class Trained:
    """What training gave: the change of each head in its update space, and the last batch's loss."""

    changes: tuple[Tensor, Tensor]
    final_loss: float
    updates: int
    temperature: float


def train_pair(
    method: Method,
    lesson: Lesson,
    spaces: Spaces,
    rows: TurnedRows,
    run: Run,
    saved: Tensors | None = None,
) -> Trained:
    """Train the two heads of the pair on `rows`; all ranks end with the same.

    From `saved` on it goes as if it had never been interrupted. Raises TrainingDiverged, on all ranks
    after the same update, soon after the first loss that is not finite.
    """
    plan = _plan(lesson)
    total = plan.updates(len(rows))
    training = _Training(method, lesson, spaces, run)
    if saved is not None:
        training.restore(saved)
        run.watcher.resumed(training.done)
    for batch in rows.batches(plan, run.here, training.done):
        is_curious = run.watcher.is_curious()
        training.look(is_curious)
        training.update(batch, total)
        if training.done < total:
            run.checkpoints.offer(training.done, training.state)
        sight = training.sight() if is_curious else None
        run.watcher.update_done(UpdateDone(training.done, total, training.loss, sight))
    return training.result()


class _Training:
    """All that changes from update to update."""

    def __init__(self, method: Method, lesson: Lesson, spaces: Spaces, run: Run) -> None:
        self._spec = spec = lesson.training
        self._here = run.here
        self._pair = _pair(lesson, spaces).to(run.device)
        self._rule = method.update_rule(lesson, self._pair)
        self._objective = GlobalLoss(self._pair, spec, run.here).to(run.device)
        heads = (self._pair.first, self._pair.second)
        free = {head.change_EI: head.free_EI.bool() for head in heads}
        self._wrapped = averaged(self._objective, free, run.here)
        self._optimizer = optimizer_for(self._objective, spec)
        self._average = TailAverage(self._pair.changes, spec.averaged_share)
        self._peers = _peers(run.here)
        self.loss, self.done = torch.zeros((), device=run.device), 0
        self._unchecked: list[Tensor] = []
        self._final_loss = math.nan

    def update(self, batch: LocalBatch, total: int) -> None:
        """One step of the optimizer."""
        self._optimizer.zero_grad(set_to_none=True)
        asked = Batch(partial(self._wrapped, batch), batch.everywhere, self._peers)
        self.loss = self._rule.backward(asked) / self._here.size
        self._optimizer.step()
        self._rule.after_update()
        self.done += 1
        self._average.after_update(self.done / total)
        self._unchecked.append(self.loss)
        if self.done % _UPDATES_PER_CHECK == 0 or self.done == total:
            self._check_losses(total)

    def _check_losses(self, total: int) -> None:
        """Raises TrainingDiverged for the first loss of the latest updates that is not finite."""
        losses = summed(torch.stack(self._unchecked), self._here)
        self._unchecked = []
        for update, loss in enumerate(losses, start=self.done - len(losses) + 1):
            if not math.isfinite(loss):
                raise self._diverged(f"the loss of update {update} of {total} is {loss}")
        self._final_loss = losses[-1]

    def _diverged(self, what: str) -> TrainingDiverged:
        spec = self._spec
        return TrainingDiverged(
            f"the training diverged: {what}; create a model with a smaller training.learning_rate "
            f"(now {spec.learning_rate:g}) or a larger training.temperature (now {spec.temperature:g})"
        )

    def look(self, is_curious: bool) -> None:
        """Whether `sight` will be asked for after the next update."""
        self._pair.look(is_curious)

    def sight(self) -> Sight:
        """What the last update looked like."""
        pair = self._pair
        return Sight(pair.gradient_norm(), pair.removed_share(), pair.drift_so_far())

    def result(self) -> Trained:
        """What training gave; raises TrainingDiverged where that is not finite."""
        changes = self._average.values()
        # No loss follows the last update. Ranks compare, as entries that are blocked do not travel.
        odd = torch.stack([(~change_EI.isfinite()).any() for change_EI in changes])
        if any(summed(odd.float(), self._here)):
            raise self._diverged(f"the heads are not finite after the last update, {self.done}")
        return Trained(changes, self._final_loss, self.done, self._objective.temperature)

    def state(self) -> Tensors:
        """All that the next update depends on, alike on all ranks."""
        parts = {
            "heads": {name: value.detach() for name, value in self._parameters().items()},
            "optimizer": optimizer_state(self._optimizer),
            "average": self._average.state(),
            "rule": self._rule.state(),
        }
        named = {f"{part}/{name}": value for part in parts for name, value in parts[part].items()}
        return {"done": torch.tensor(self.done), **named}

    @torch.no_grad()
    def restore(self, saved: Tensors) -> None:
        """Go on from there."""
        self.done = int(saved["done"])
        for name, parameter in self._parameters().items():
            parameter.copy_(saved[f"heads/{name}"])
        restore_optimizer(self._optimizer, part_of(saved, "optimizer"))
        self._average.restore(part_of(saved, "average"))
        self._rule.restore(part_of(saved, "rule"))

    def _parameters(self) -> dict[str, nn.Parameter]:
        first, second = self._pair.changes
        log_temperature = self._objective.log_temperature
        return {"first": first, "second": second, "log_temperature": log_temperature}


def new_heads(lesson: Lesson, spaces: Spaces, changes: tuple[Tensor, Tensor]) -> ModalityHeads:
    """The parent's heads with these changes, in the original coordinates."""
    weights = lesson.heads.weights
    return lesson.heads.replaced(
        {
            modality: trained_weight(weights[modality], change, spaces[modality])
            for modality, change in zip(lesson.pair.modalities, changes, strict=True)
        }
    )


@torch.no_grad()
def mean_loss(
    lesson: Lesson, spaces: Spaces, rows: TurnedRows, run: Run, changes: tuple[Tensor, Tensor]
) -> float:
    """Mean loss with these changes over one pass, or the beginning of a long one."""
    pair = _pair(lesson, spaces).to(run.device)
    for parameter, change_EI in zip(pair.changes, changes, strict=True):
        parameter.copy_(change_EI)
    objective = GlobalLoss(pair, lesson.training, run.here).to(run.device)
    with closing(rows.batches(replace(_plan(lesson), epochs=1), run.here)) as batches:
        losses = [objective(batch) / run.here.size for batch in islice(batches, _BATCHES_OF_MEAN)]
    (mean,) = summed(torch.stack(losses).mean(dim=0, keepdim=True), run.here)
    return mean


def _peers(here: World) -> Peers:
    return Peers(here.size, partial(share_of, here=here), partial(gathered, here=here))


def _plan(lesson: Lesson) -> Plan:
    spec = lesson.training
    return Plan(spec.batch_size, spec.epochs, lesson.seed)


def _pair(lesson: Lesson, spaces: Spaces) -> PairInEigenCoordinates:
    first, second = (
        (lesson.heads.weights[modality], spaces[modality]) for modality in lesson.pair.modalities
    )
    return PairInEigenCoordinates(first, second)


def turning(lesson: Lesson, spaces: Spaces, device: torch.device) -> Transform:
    """From raw rows of conditioned modalities to the input coordinates of the heads, on the device."""
    first, second = (
        RotatedFeatures.of(lesson.heads.conditioning[modality], spaces[modality], device)
        for modality in lesson.pair.modalities
    )

    def transform(raw: PairedRows) -> PairedRows:
        rows = raw.to(device)
        return replace(rows, first_NI=first(rows.first_NI), second_NJ=second(rows.second_NJ))

    return transform
