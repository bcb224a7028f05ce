"""The training loop: one dataset, two heads, the global batch spread over the ranks.

Shapes: B rows of the global batch, L of them local, E width of the embeddings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from workers.methods.port import Batch, Lesson, Method
from workers.model.heads import ModalityHeads
from workers.model.pair import PairInEigenCoordinates, rotate, trained_weight
from workers.model.rows import PairedRows
from workers.nullspace.mask import UpdateSpace
from workers.train.average import TailAverage
from workers.train.data import count_updates, global_batches
from workers.train.distributed import ALONE, World, sum_scalar
from workers.train.objective import GlobalLoss
from workers.train.optimizer import optimizer_for

Spaces = Mapping[str, UpdateSpace]


@dataclass(frozen=True)
class UpdateDone:
    """Told after each update. `local_loss` is this rank's share of the global loss."""

    done: int
    total: int
    local_loss: Tensor


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
    rows: PairedRows,
    here: World,
    on_update: Callable[[UpdateDone], None],
) -> Trained:
    """Train the two heads of the pair on `rows`, on their device; all ranks end with the same."""
    spec, device = lesson.training, rows.first_NI.device
    pair = _pair(lesson, spaces).to(device)
    rotated = _rotated(lesson, spaces, rows)
    rule = method.update_rule(lesson, pair, rotated)
    objective = GlobalLoss(pair, spec, here).to(device)
    wrapped = DistributedDataParallel(objective) if here.size > 1 else objective
    optimizer = optimizer_for(objective, spec)
    average = TailAverage(pair.changes, spec.averaged_share)
    total = count_updates(len(rows), spec.batch_size, spec.epochs)
    loss = torch.zeros((), device=device)
    batches = global_batches(len(rows), spec.batch_size, spec.epochs, lesson.seed)
    for done, index_B in enumerate(batches, start=1):
        batch = rotated.at(index_B.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss = rule.backward(Batch(partial(wrapped, batch), batch)) / here.size
        optimizer.step()
        rule.after_update()
        average.after_update(done / total)
        on_update(UpdateDone(done, total, loss))
    return Trained(average.values(), sum_scalar(loss, here), total, objective.temperature)


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
    lesson: Lesson, spaces: Spaces, rows: PairedRows, changes: tuple[Tensor, Tensor]
) -> float:
    """Mean loss of one pass over the rows with these changes."""
    spec = lesson.training
    pair = _pair(lesson, spaces).to(rows.first_NI.device)
    for parameter, change_EI in zip(pair.changes, changes, strict=True):
        parameter.copy_(change_EI)
    objective = GlobalLoss(pair, spec, ALONE)
    rotated = _rotated(lesson, spaces, rows)
    batches = global_batches(len(rows), spec.batch_size, 1, lesson.seed)
    losses = [float(objective(rotated.at(index_B))) for index_B in batches]
    return sum(losses) / max(len(losses), 1)


def _pair(lesson: Lesson, spaces: Spaces) -> PairInEigenCoordinates:
    first, second = (
        (lesson.heads.weights[modality], spaces[modality]) for modality in lesson.pair.modalities
    )
    return PairInEigenCoordinates(first, second)


def _rotated(lesson: Lesson, spaces: Spaces, rows: PairedRows) -> PairedRows:
    """All rows in the input coordinates of the heads: once, so that no update has to."""
    first, second = (spaces[modality] for modality in lesson.pair.modalities)
    return replace(
        rows, first_NI=rotate(rows.first_NI, first), second_NJ=rotate(rows.second_NJ, second)
    )
