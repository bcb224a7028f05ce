"""A rank that reads longer than the others wait in a collective is waited for all the same."""

import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from workers.train.distributed import meet, world

_PATIENCE, _LATE = 2.0, 4.0


def _rank(rank: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    store = dist.FileStore(f"{folder}/rendezvous", 2)
    store.set(str(rank), "has started")
    store.wait(["0", "1"], timedelta(seconds=300))
    dist.init_process_group(
        "gloo",
        store=store,
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=_PATIENCE),
    )
    here = world()
    time.sleep(_LATE * rank)
    began = time.monotonic()
    meet(here)
    torch.save(time.monotonic() - began, Path(folder) / f"{rank}.pt")
    assert world().late is here.late
    dist.destroy_process_group()


def test_ranks_meet_after_longer_than_a_collective_waits(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    assert torch.load(tmp_path / "0.pt") > _PATIENCE
    assert torch.load(tmp_path / "1.pt") < _PATIENCE
