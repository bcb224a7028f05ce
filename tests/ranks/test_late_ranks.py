"""The other ranks wait for a rank that reads for longer than a collective's timeout."""

import os
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from tests.ranks.group import joined
from tests.ranks.processes import start_ranks
from workers.train.distributed import World, all_reduce_max, barrier, world

_TIMEOUT, _LATE = 0.5, 1.5


def _rank(rank: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with joined(Path(folder) / "rendezvous", rank, size=2):
        _meets(world())


def _meets(here: World) -> None:
    # From here on, a collective fails if a rank is late; before, ranks wait for each other's start.
    _set_pg_timeout(timedelta(seconds=_TIMEOUT), dist.group.WORLD)
    time.sleep(_LATE * here.rank)
    barrier(here)
    time.sleep(_LATE * here.rank)
    assert all_reduce_max(float(here.rank), here) == 1.0
    assert world().slow_group is here.slow_group


def test_a_barrier_outlasts_the_timeout_of_collectives(tmp_path: Path) -> None:
    start_ranks(_rank, (str(tmp_path),), 2)
