"""What a rank of the test does: many checks in one spawn, because importing torch is slow."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from workers.contract.modality import ModalityPair
from workers.contract.model import ModelSpec, TrainingSpec
from workers.model.heads import initial_heads
from workers.model.loss import Everywhere, positives, symmetric_info_nce, unit
from workers.model.memory import Memory
from workers.model.rows import PairedRows
from workers.nullspace.moments import pair_moments
from workers.train.distributed import (
    Gathering,
    World,
    lengths_of,
    share_of,
    sum_moments,
    world,
)
from workers.train.learn import Knowledge, Task, learn
from workers.train.rows.held import HeldRows
from workers.train.run import Run

ROWS, BATCH = 90, 26  # a batch that neither 3 nor 4 ranks divide, and rows that it does not divide
PAIR = ModalityPair(first="image", second="text")
SPEC = ModelSpec(
    width=12,
    modalities={"image": 20, "text": 9},
    training=TrainingSpec(epochs=8, batch_size=BATCH, learning_rate=3e-3),
)


def in_ranks(check: Callable[[World], object], size: int, folder: Path) -> list[object]:
    """Run `check` in `size` gloo processes; answers what each rank returned."""
    mp.spawn(_rank, args=(check, size, str(folder)), nprocs=size)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def _rank(rank: int, check: Callable[[World], object], size: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous-{size}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    torch.save(check(world()), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def everything(here: World) -> dict[str, object]:
    """All that must not depend on the number of ranks."""
    return {
        "moments": _moments(here),
        "gradient": _gradient(here),
        "first": _trained(here, Memory()),
        "second": _trained(here, Memory().with_dataset(PAIR, pair_moments(*_features(5)))),
    }


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
    own = share_of(ROWS, here)
    total = sum_moments(pair_moments(first[own], second[own]), here)
    return [total.first.sum_II, total.second.sum_II, total.cross_IJ, torch.tensor(total.count)]


def _gradient(here: World) -> torch.Tensor:
    """Gradient of the global loss with respect to all rows, put together again."""
    first, second = (unit(side[:BATCH, :9]) for side in _features(1))
    keys = torch.arange(BATCH)
    own, lengths = share_of(BATCH, here), lengths_of(BATCH, here)
    local = [side[own].clone().requires_grad_() for side in (first, second)]

    def gather(rows: torch.Tensor) -> torch.Tensor:
        return Gathering(rows, lengths, here).wait()

    everywhere = Everywhere(gather(local[0].detach()), gather(local[1].detach()), gather)
    positive = positives(keys[own], keys[own], keys, keys)
    symmetric_info_nce((local[0], local[1]), positive, 0.07, everywhere).backward()
    return torch.cat([gather(side.grad) for side in local if side.grad is not None], dim=1)


def _trained(here: World, memory: Memory) -> dict[str, torch.Tensor]:
    """A dataset with the default method: conditioning, mask, shares and replay included."""
    first, second = _raw_features(2)
    keys = torch.arange(ROWS)
    task = Task(PAIR, HeldRows(PairedRows(first, second, keys, keys // 2)), seed=3)
    before = Knowledge(initial_heads(SPEC), memory)
    learned = learn(SPEC, before, task, Run(here))
    return {
        **learned.knowledge.heads.weights,
        "loss": torch.tensor(learned.trained.final_loss),
        "moments": learned.moments.cross_IJ,
        **{f"{name} map": it.map_FF for name, it in learned.knowledge.heads.conditioning.items()},
    }
