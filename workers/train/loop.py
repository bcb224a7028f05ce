"""The training loop: one dataset, two heads, the global batch spread over the ranks.

Shapes: B rows of the global batch, L of them local, E width of the embeddings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from workers.contract.modality import ModalityPair
from workers.contract.model import TrainingSpec
from workers.methods.port import UpdateSpace
from workers.model.heads import ModalityHeads
from workers.model.loss import positives, symmetric_info_nce
from workers.train.data import TrainingRows, count_updates, global_batches
from workers.train.distributed import World, gather_rows, share_of, sum_scalar
from workers.train.optimizer import PairInEigenCoordinates, adamw, rotate, trained_weight


@dataclass(frozen=True)
class PairTask:
    """What one dataset asks of two heads; the seed alone decides the order of rows."""

    heads: ModalityHeads
    pair: ModalityPair
    spaces: Mapping[str, UpdateSpace]
    spec: TrainingSpec
    seed: int


@dataclass(frozen=True)
class UpdateDone:
    """Told after each update. `local_loss` is this rank's share of the global loss."""

    done: int
    total: int
    local_loss: Tensor


@dataclass(frozen=True)
class Trained:
    """The heads after training and the loss of the last global batch."""

    heads: ModalityHeads
    final_loss: float
    updates: int


def train_pair(
    task: PairTask,
    rows: TrainingRows,
    here: World,
    device: torch.device,
    on_update: Callable[[UpdateDone], None],
) -> Trained:
    """Train the two heads of the pair on `rows`; every rank ends with the same heads."""
    module = _module(task).to(device)
    wrapped = DistributedDataParallel(module) if here.size > 1 else module
    optimizer = adamw(module, task.spec)
    rotated = _rotated(task, rows, device)
    total = count_updates(len(rows), task.spec.batch_size, task.spec.epochs)
    loss = torch.zeros((), device=device)
    batches = global_batches(len(rows), task.spec.batch_size, task.spec.epochs, task.seed)
    for done, batch_B in enumerate(batches, start=1):
        loss = _update(wrapped, optimizer, rotated, batch_B.to(device), task.spec.temperature, here)
        on_update(UpdateDone(done, total, loss))
    return Trained(_new_heads(task, module), sum_scalar(loss, here), total)


def _module(task: PairTask) -> PairInEigenCoordinates:
    first, second = (
        (task.heads.weights[modality], task.spaces[modality]) for modality in task.pair.modalities
    )
    return PairInEigenCoordinates(first, second)


def _rotated(task: PairTask, rows: TrainingRows, device: torch.device) -> TrainingRows:
    first, second = (task.spaces[modality] for modality in task.pair.modalities)
    return TrainingRows(
        rotate(rows.first_NI, first).to(device),
        rotate(rows.second_NJ, second).to(device),
        rows.first_keys_N.to(device),
        rows.second_keys_N.to(device),
    )


def _update(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: TrainingRows,
    batch_B: Tensor,
    temperature: float,
    here: World,
) -> Tensor:
    """One update on one global batch; answers this rank's part of the loss."""
    local_L = batch_B[share_of(len(batch_B), here)]
    first_LE, second_LE = module(rows.first_NI[local_L], rows.second_NJ[local_L])
    everywhere = (
        gather_rows(first_LE, len(batch_B), here),
        gather_rows(second_LE, len(batch_B), here),
    )
    positive_LB = positives(
        rows.first_keys_N[local_L],
        rows.second_keys_N[local_L],
        rows.first_keys_N[batch_B],
        rows.second_keys_N[batch_B],
    )
    loss = symmetric_info_nce((first_LE, second_LE), everywhere, positive_LB, temperature)
    optimizer.zero_grad(set_to_none=True)
    # DDP divides the summed gradients by the number of ranks; the loss is already a share.
    (loss * here.size).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def _new_heads(task: PairTask, module: PairInEigenCoordinates) -> ModalityHeads:
    changes = (module.first.change_EI.detach(), module.second.change_EI.detach())
    return task.heads.replaced(
        {
            modality: trained_weight(task.heads.weights[modality], change, task.spaces[modality])
            for modality, change in zip(task.pair.modalities, changes, strict=True)
        }
    )
