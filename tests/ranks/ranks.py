"""Computations of ranks, whose results must not depend on the number of ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from cmcl.contract.dataset import Shard
from cmcl.contract.errors import TrainingDiverged
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from tests.fakes.feature_shards import write_pair_shards
from tests.fakes.rotated_rows import rotated
from workers.methods.method import Batch, Method, TrainingContext, UpdateRule
from workers.methods.preserve import Preserve
from workers.methods.registry import method_for
from workers.model.heads import ModalityHeads, PairedRows, content_keys, initial_heads
from workers.model.loss import Everywhere, positives, symmetric_info_nce, unit
from workers.model.memory import Memory
from workers.model.pair import PairInEigenCoordinates
from workers.nullspace.mask import UpdateSpace, everything_free
from workers.nullspace.moments import pair_moments
from workers.nullspace.subspace import EigenBasis
from workers.train.certify import PastDataset, limit_drift, weights_of
from workers.train.dataset import RowsOnDisk
from workers.train.distributed import (
    AsyncGather,
    World,
    all_reduce_pair_moments,
    broadcast_object,
    rank_lengths,
    rank_slice,
)
from workers.train.learn import ModelState, Task, condition_new_modalities, initial_state, learn
from workers.train.loop import GlobalLoss, train_pair
from workers.train.rows import LocalBatch, RowsInMemory, TrainingRows
from workers.train.run import Run, UpdateDone, Watcher

ROWS, BATCH = 90, 26  # a batch that 4 ranks do not divide, and rows that it does not divide
PAIR = ModalityPair(first="image", second="text")
PARTLY_KNOWN = ModalityPair(first="image", second="depth")
# The seed of an earlier dataset.
EARLIER = 7
SPEC = ModelSpec(
    width=12,
    modalities={"image": 20, "text": 9, "depth": 9},
    training=TrainingSpec(epochs=8, batch_size=BATCH, learning_rate=3e-3),
    policy="preserve",
)
SOLVED = SPEC.model_copy(update={"policy": "improve"})


def everything(shards: Sequence[Shard], here: World) -> dict[str, object]:
    """Return everything that must not depend on the number of ranks."""
    partly = Memory().with_dataset(PARTLY_KNOWN, pair_moments(*_features(EARLIER)))
    return {
        **uneven(shards, here),
        "first streamed": _first(here, _streamed(shards)),
        "second": _trained(here, _known(), _held()),
        "second of one modality": _trained(here, partly, _held()),
        "second in unlike spaces": _trained(
            here, _known(), _held(), _UnlikeSpaces(SPEC.kept_energy, here.is_leader)
        ),
        "solved": _solved(here, _held()),
    }


def uneven(shards: Sequence[Shard], here: World) -> dict[str, object]:
    """Return of these what depends on how rows, batches and earlier datasets are divided."""
    return {
        "moments": _moments(here),
        "gradient": _gradient(here),
        "second streamed": _trained(here, _known(), _streamed(shards)),
        "traffic": _traffic(here, _known()),
        "scores": _largest_scores(here),
        "limited": _limited(here),
    }


def _known() -> Memory:
    return Memory().with_dataset(PAIR, pair_moments(*_features(EARLIER)))


def write_shards(folder: Path) -> list[Shard]:
    """The rows of `_held`, in files of uneven length; the last has most."""
    first, second = (side.numpy() for side in _raw_features(2))
    return write_pair_shards(folder, first, second, [1, 29, 60], group_rows=7)


def _features(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows with the constant 1."""
    first, second = _raw_features(seed)
    ones = torch.ones(ROWS, 1)
    return torch.cat([unit(first), ones], dim=1), torch.cat([unit(second), ones], dim=1)


def _raw_features(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(ROWS, 6, generator=generator)
    first = shared @ torch.randn(6, 20, generator=generator)
    return first, shared @ torch.randn(6, 9, generator=generator)


def _moments(here: World) -> list[torch.Tensor]:
    first, second = _features(0)
    own = rank_slice(ROWS, here)
    total = all_reduce_pair_moments(pair_moments(first[own], second[own]), here)
    return [total.first.sum_II, total.second.sum_II, total.cross_IJ, torch.tensor(total.count)]


def _gradient(here: World) -> torch.Tensor:
    """Gradient of the global loss with respect to all rows, put together again."""
    first, second = (unit(side[:BATCH, :9]) for side in _features(1))
    keys = torch.arange(BATCH)
    own, lengths = rank_slice(BATCH, here), rank_lengths(BATCH, here)
    local = [side[own].clone().requires_grad_() for side in (first, second)]

    def gather(rows: torch.Tensor) -> torch.Tensor:
        return AsyncGather(rows, lengths, here).wait()

    everywhere = Everywhere(gather(local[0].detach()), gather(local[1].detach()), gather)
    positive = positives(keys[own], keys[own], keys, keys)
    symmetric_info_nce((local[0], local[1]), positive, 0.07, everywhere).backward()
    return torch.cat([gather(side.grad) for side in local if side.grad is not None], dim=1)


def _held() -> RowsInMemory:
    first, second = _raw_features(2)
    keys = (torch.from_numpy(content_keys(side.numpy())) for side in (first, second))
    return RowsInMemory(PairedRows(first, second, *keys))


def _streamed(shards: Sequence[Shard]) -> RowsOnDisk:
    return RowsOnDisk(shards, (SPEC.widths["image"], SPEC.widths["text"]))


def _first(here: World, rows: TrainingRows) -> dict[str, torch.Tensor]:
    """The first dataset of two modalities under `preserve`, which is solved."""
    learned = learn(SPEC, initial_state(SPEC), Task(PAIR, rows, seed=3), Run(here))
    return {"scores": _scores(learned.model_state.heads), "moments": learned.moments.cross_IJ}


def _trained(
    here: World, memory: Memory, rows: TrainingRows, method: Method | None = None
) -> dict[str, torch.Tensor]:
    """A later dataset under `preserve`: conditioning, mask, shares and penalty included."""
    losses = Losses()
    heads = condition_new_modalities(SPEC, initial_heads(SPEC), PAIR, rows, Run(here))
    before = ModelState(heads, memory)
    learned = learn(SPEC, before, Task(PAIR, rows, seed=3), Run(here, watcher=losses), method)
    earlier = PastDataset.in_memory(
        "old", PAIR, pair_moments(*_features(EARLIER)), weights_of(PAIR, heads)
    )
    return {
        **learned.model_state.heads.weights,
        "losses": losses.of_batches(here),
        "certificate": torch.tensor(earlier.drift(learned.model_state.heads)),
        "moments": learned.moments.cross_IJ,
        **{f"{name} map": it.map for name, it in learned.model_state.heads.conditioning.items()},
    }


@dataclass(frozen=True)
class _UnlikeSpaces(Preserve):
    """Other eigenpairs and other free entries on all ranks but the first, as from a CPU that rounds differently."""

    is_leader: bool

    def update_spaces(self, context: TrainingContext) -> Mapping[str, UpdateSpace]:
        spaces = super().update_spaces(context)
        return spaces if self.is_leader else {name: _unlike(spaces[name]) for name in spaces}


def _unlike(space: UpdateSpace) -> UpdateSpace:
    outputs, inputs = (
        EigenBasis(-basis.vectors_II, basis.values_I.flip(0))
        for basis in (space.outputs, space.inputs)
    )
    # As many entries as before, so that ranks which disagree send messages of one length.
    return UpdateSpace(outputs, inputs, space.free_EI.flip(0, 1))


def _solved(here: World, rows: TrainingRows) -> dict[str, torch.Tensor]:
    """Two datasets with the default policy, which solves heads from moments."""
    run = Run(here)
    first = learn(SOLVED, ModelState(initial_heads(SOLVED)), Task(PAIR, rows, seed=3), run)
    second = learn(SOLVED, first.model_state, Task(PAIR, rows, seed=4), run)
    before = first.model_state
    # Rank 0 has the memory.
    first_memory, memory = broadcast_object(
        lambda: (before.memory, second.model_state.memory), here
    )
    (sums,) = memory.centred.values()
    context = TrainingContext(
        before.heads, first_memory, before.method_state, PAIR, SOLVED.training, seed=4
    )
    by_itself = method_for(SOLVED).solve(context, memory)
    return {
        "sums": sums.first_FF,
        "first scores": _scores(before.heads),
        "second scores": _scores(second.model_state.heads),
        "second scores by itself": _scores(before.heads.replaced(by_itself.weights)),
        "moments": second.moments.cross_IJ,
    }


def _scores(heads: ModalityHeads) -> torch.Tensor:
    """Scores of some rows. Heads are not unique if fewer directions are real than embeddings have."""
    first_NE, second_NE = (
        heads.outputs(name, side)
        for name, side in zip(PAIR.modalities, _raw_features(5), strict=True)
    )
    return first_NE @ second_NE.mT


def diverged(here: World) -> dict[str, str]:
    """Return the error of each rank if the loss is not finite, on all ranks or on one of them."""
    return {
        "all ranks' rows": _raised(_Odd(True), here),
        "one rank's rows": _raised(_Odd(here.rank == here.size - 1), here),
    }


def _raised(method: Method, here: World) -> str:
    heads = initial_heads(SPEC)
    context = TrainingContext(heads, Memory(), {}, PAIR, SPEC.training, seed=3)
    spaces = method.update_spaces(context)
    keys = torch.arange(ROWS)
    rows = rotated(context, spaces, PairedRows(*_features(2), keys, keys))
    try:
        train_pair(method, context, spaces, rows, Run(here))
    except TrainingDiverged as error:
        return str(error)
    return "nothing"


class _Odd(Method):
    """The loss of this rank's rows is not finite in one update. The gradient is, so that no other rank can see it."""

    def __init__(self, is_odd: bool) -> None:
        self._is_odd = is_odd

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        return _OddOnce() if self._is_odd else UpdateRule()


class _OddOnce(UpdateRule):
    def __init__(self) -> None:
        self._done = 0

    def backward(self, batch: Batch) -> torch.Tensor:
        self._done += 1
        loss = super().backward(batch)
        return loss * torch.nan if self._done == 4 else loss


class Losses(Watcher):
    """The loss curve."""

    def __init__(self) -> None:
        self._shares: list[torch.Tensor] = []

    def update_done(self, update: UpdateDone) -> None:
        self._shares.append(update.local_loss)

    def of_batches(self, here: World) -> torch.Tensor:
        """Losses of whole batches, summed over the ranks."""
        shares = torch.stack(self._shares)
        if here.size > 1:
            dist.all_reduce(shares)
        return shares


def _limited(here: World) -> tuple[torch.Tensor, torch.Tensor]:
    """Random changes, shrunk for the sake of more earlier datasets than there are ranks."""
    spec = SPEC.model_copy(update={"max_drift": 0.01})
    heads = initial_heads(spec)
    context = TrainingContext(heads, Memory(), {}, PAIR, spec.training, seed=3)
    spaces = {name: everything_free(*weight.shape) for name, weight in heads.weights.items()}
    first, second = (
        torch.randn(heads.weights[name].shape, generator=torch.Generator().manual_seed(4))
        for name in PAIR.modalities
    )
    earlier = [
        PastDataset.in_memory(
            str(seed), PAIR, pair_moments(*_features(seed)), weights_of(PAIR, heads)
        )
        for seed in range(5)
    ]
    changes, shrunk = limit_drift(spec, context, spaces, (first, second), earlier, here)
    assert shrunk is not None
    assert shrunk.drift_after <= 0.01 < shrunk.drift_before
    return changes


def _traffic(here: World, memory: Memory) -> dict[str, int]:
    """Bytes that a dataset of two known modalities passes to collectives, and the terms of their formula."""
    rows, run = _held(), Run(World(here.rank, here.size))
    before = ModelState(
        condition_new_modalities(SPEC, initial_heads(SPEC), PAIR, rows, Run(here)), memory
    )
    learned = learn(SPEC, before, Task(PAIR, rows, seed=3), run)
    free = sum(int(space.free_EI.sum()) for space in learned.spaces.values())
    traffic = run.here.traffic
    return {
        "gathered": traffic.gathered,
        "reduced": traffic.reduced,
        "updates": learned.trained.updates,
        "free": free,
        "entries": sum(space.free_EI.numel() for space in learned.spaces.values()),
    }


class _Largest(TorchDispatchMode):
    """Notes the most numbers of any result that has a column for each row of the batch."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self._columns, self.numbers = columns, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor) and each.dim() == 2 and self._columns in each.shape:
                self.numbers = max(self.numbers, each.numel())
        return result


def _largest_scores(here: World) -> int:
    """The most scores that a rank ever holds in one matrix, forward and backward."""
    first, second = (side[:BATCH, :3].contiguous() for side in _features(1))
    own, lengths = rank_slice(BATCH, here), rank_lengths(BATCH, here)
    keys = torch.arange(BATCH)
    rows = PairedRows(first[own], second[own], keys[own], keys[own])
    space = everything_free(3, 3)
    pair = PairInEigenCoordinates((torch.eye(3), space), (torch.eye(3), space))
    objective = GlobalLoss(pair, SPEC.training, here)
    with _Largest(BATCH) as largest:
        objective(LocalBatch(rows, lengths)).backward()
    return largest.numbers
