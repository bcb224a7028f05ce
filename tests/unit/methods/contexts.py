"""Tiny contexts in float64: three modalities, heads that have learned something, related rows."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import TrainingSpec
from tests.fakes.rotated_rows import seen
from workers.methods.method import Batch, Method, MethodState, Recipe, TrainingContext
from workers.model.heads import ModalityHeads, PairedRows
from workers.model.memory import Memory
from workers.model.pair import PairInEigenCoordinates
from workers.nullspace.moments import pair_moments
from workers.train.distributed import World
from workers.train.loop import GlobalLoss
from workers.train.rows import LocalBatch

WIDTH = 4
HEAD_WIDTHS = {"image": 7, "text": 5, "audio": 6, "depth": 5}
IMAGE_TEXT = ModalityPair(first="image", second="text")
TEXT_IMAGE = ModalityPair(first="text", second="image")
AUDIO_IMAGE = ModalityPair(first="audio", second="image")
AUDIO_DEPTH = ModalityPair(first="audio", second="depth")
TRAINING = TrainingSpec(epochs=2, batch_size=8, learning_rate=1e-2, temperature=0.2)


def random_heads(seed: int) -> ModalityHeads:
    generator = torch.Generator().manual_seed(seed)
    return ModalityHeads(
        {
            modality: torch.randn(WIDTH, width, generator=generator, dtype=torch.float64)
            for modality, width in HEAD_WIDTHS.items()
        }
    )


def random_rows(pair: ModalityPair, seed: int, rows: int = 8) -> PairedRows:
    """Both sides of a row come from the same three numbers; the last column is the constant 1.

    The last two rows have the same second item.
    """
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    first, second = (_side(shared, HEAD_WIDTHS[name], generator) for name in pair.modalities)
    second[-1] = second[-2]
    keys = torch.arange(rows) + 1000 * seed
    second_keys = keys.clone()
    second_keys[-1] = second_keys[-2]
    return PairedRows(first, second, keys, second_keys)


def _side(shared: Tensor, width: int, generator: torch.Generator) -> Tensor:
    mixing = torch.randn(shared.shape[1], width - 1, generator=generator, dtype=torch.float64)
    ones = torch.ones(len(shared), 1, dtype=torch.float64)
    return torch.cat([torch.nn.functional.normalize(shared @ mixing, dim=1), ones], dim=1)


def context_on(
    pair: ModalityPair,
    datasets: Sequence[tuple[ModalityPair, PairedRows]] = (),
    kept: MethodState | None = None,
    training: TrainingSpec = TRAINING,
    recipe: Recipe | None = None,
) -> TrainingContext:
    """The next context after datasets that left their moments."""
    memory = Memory()
    for known, rows in datasets:
        memory = memory.with_dataset(known, pair_moments(rows.first_NI, rows.second_NJ))
    return TrainingContext(
        random_heads(0), memory, kept or {}, pair, training, 5, recipe or Recipe()
    )


def taught(method: Method, *datasets: tuple[ModalityPair, PairedRows]) -> MethodState:
    """What a method keeps of datasets in order, under heads that differ from the parent's."""
    kept: MethodState = {}
    for number, (pair, rows) in enumerate(datasets):
        context = replace(context_on(pair, kept=kept), seed=number)
        kept = method.next_state(context, random_heads(100 + number), seen(rows))
    return kept


def pair_for(
    method: Method, context: TrainingContext, moved: float = 0.3
) -> PairInEigenCoordinates:
    """The pair in the middle of training: both changes are already random numbers."""
    spaces, weights = method.update_spaces(context), context.heads.weights
    first, second = ((weights[name], spaces[name]) for name in context.pair.modalities)
    pair = PairInEigenCoordinates(first, second)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for change in pair.changes:
            change.copy_(
                moved * torch.randn(change.shape, generator=generator, dtype=torch.float64)
            )
    return pair


def batch_of(context: TrainingContext, pair: PairInEigenCoordinates, rows: PairedRows) -> Batch:
    objective = GlobalLoss(pair, context.training, World(0, 1))
    batch = LocalBatch(rows, (len(rows),), rows)
    return Batch(lambda: objective(batch), rows)


def gradients_left_by(
    method: Method, context: TrainingContext, pair: PairInEigenCoordinates, rows: PairedRows
) -> list[Tensor]:
    """Gradients of one update's `backward`, for the optimizer."""
    method.update_rule(context, pair).backward(batch_of(context, pair, rows))
    return [change.grad.clone() for change in pair.changes if change.grad is not None]


def gradients_of(value: Tensor, pair: PairInEigenCoordinates) -> list[Tensor]:
    return list(torch.autograd.grad(value, pair.changes, allow_unused=True, materialize_grads=True))


def weights_now(context: TrainingContext, pair: PairInEigenCoordinates) -> dict[str, Tensor]:
    """All heads in the middle of training."""
    first, second = context.pair.modalities
    moving = {first: pair.first.weight_EI, second: pair.second.weight_EI}
    return {**context.heads.weights, **moving}


def info_nce_by_loops(
    first_BE: Tensor, second_BE: Tensor, rows: PairedRows, temperature: float
) -> Tensor:
    """Symmetric InfoNCE with several positives, term by term."""
    first_BE = first_BE / first_BE.norm(dim=1, keepdim=True)
    second_BE = second_BE / second_BE.norm(dim=1, keepdim=True)
    count, total = len(rows), first_BE.new_zeros(())
    for i in range(count):
        same = [
            j
            for j in range(count)
            if rows.first_keys_N[i] == rows.first_keys_N[j]
            or rows.second_keys_N[i] == rows.second_keys_N[j]
        ]
        for query_E, keys_BE in ((first_BE[i], second_BE), (second_BE[i], first_BE)):
            scores_B = keys_BE @ query_E / temperature
            total = total - sum(scores_B[j] - scores_B.logsumexp(0) for j in same) / len(same)
    return total / (2 * count)


def loss_by_loops(
    weights: dict[str, Tensor], pair: ModalityPair, rows: PairedRows, temperature: float
) -> Tensor:
    first_BE = rows.first_NI @ weights[pair.first].mT
    second_BE = rows.second_NJ @ weights[pair.second].mT
    return info_nce_by_loops(first_BE, second_BE, rows, temperature)
