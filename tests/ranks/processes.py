"""Processes of ranks, forked from one that has imported torch, which takes seconds."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

from tests.ranks.group import joined
from workers.train.distributed import World, world


def in_ranks(check: Callable[[World], object], size: int, folder: Path) -> list[Any]:
    """Run `check` in `size` gloo processes; return the result of each rank."""
    start_ranks(_rank, (check, size, str(folder)), size)
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def start_ranks(rank: Callable[..., None], args: tuple[object, ...], size: int) -> None:
    """Run `rank` with its number and `args` in `size` processes until they end. Raises if one of them fails."""
    multiprocessing.set_forkserver_preload(["tests.ranks.ranks"])
    start_processes(rank, args=args, nprocs=size, start_method="forkserver")


def _rank(rank: int, check: Callable[[World], object], size: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with joined(Path(folder) / f"rendezvous-{size}", rank, size):
        torch.save(check(world()), Path(folder) / f"{rank}.pt")
