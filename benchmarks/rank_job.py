"""The work of each rank of `benchmarks.rank_invariance`, and the bytes sent between ranks.

A dataset is learned under `preserve` by a model that has learned one before. The kernel counts bytes in a private network
namespace.
"""

import ctypes
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cmcl.contract.dataset import Shard
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.train.certify import PastDataset, weights_of
from workers.train.dataset import RowsOnDisk
from workers.train.distributed import Traffic, World, world
from workers.train.learn import Task, TrainingResult, initial_state, learn
from workers.train.rows import TrainingRows
from workers.train.run import Run, UpdateDone, Watcher

_NEW_NETWORK = 0x40000000
_COUNTERS = Path("/proc/net/dev")


def enter_own_network() -> bool:
    """Enter a network namespace with only a loopback, for this process and its children.

    Return False if that is not permitted (it needs root); bytes are then not counted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK) != 0:
        return False
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # noqa: S607
    # Gloo would resolve the host name, whose address does not exist in this namespace.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    return True


def bytes_on_loopback() -> int:
    """Return the bytes received so far, including headers."""
    lines = _COUNTERS.read_text().splitlines()
    counters = next(line for line in lines if line.strip().startswith("lo:"))
    return int(counters.partition(":")[2].split()[0])


@dataclass(frozen=True)
class Part:
    """One dataset, as shards and as rows in memory."""

    pair: ModalityPair
    shards: tuple[Shard, ...]
    held: TrainingRows

    def rows(self, way: str, spec: ModelSpec) -> TrainingRows:
        """Return the rows, `held` or `streamed`."""
        if way == "held":
            return self.held
        first, second = (spec.widths[modality] for modality in self.pair.modalities)
        return RowsOnDisk(self.shards, (first, second))


class TrafficRecorder(Watcher):
    """Records the loss curve, and the bytes sent between the ends of the first and the last update,
    without those sent once per dataset."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self.shares: list[torch.Tensor] = []
        self._given: list[int] = []
        self._wire: list[int] = []

    def update_done(self, update: UpdateDone) -> None:
        self.shares.append(update.local_loss)
        if update.done in (1, update.total):
            # A barrier, so that only whole updates are counted.
            _barrier()
            self._given.append(self._traffic.gathered + self._traffic.reduced)
            self._wire.append(bytes_on_loopback())
            _barrier()

    def travelled(self) -> dict[str, int]:
        """Return the bytes of all updates but the first: counted by this rank, and on the wire."""
        return {
            "given": self._given[-1] - self._given[0],
            "wire": self._wire[-1] - self._wire[0],
        }

    def losses(self) -> torch.Tensor:
        """Return the losses of whole batches."""
        losses = torch.stack(self.shares)
        if dist.is_initialized():
            dist.all_reduce(losses)
        return losses


@dataclass(frozen=True)
class Job:
    """A picklable job: a dataset for a model that has learned one before."""

    spec: ModelSpec
    part: Part
    way: str
    parent: Path
    first: ModalityPair

    def __call__(self) -> dict[str, Any]:
        """Return the results to compare, and the bytes sent."""
        first: TrainingResult = torch.load(self.parent, weights_only=False)
        here = World(world().rank, world().size)
        noting = TrafficRecorder(here.traffic)
        task = Task(self.part.pair, self.part.rows(self.way, self.spec), seed=8)
        second = learn(self.spec, first.model_state, task, Run(here, watcher=noting))
        return {
            "heads": dict(second.model_state.heads.weights),
            "losses": noting.losses(),
            "moments": _moments(second),
            "certificate": self._earlier(first).drift(second.model_state.heads),
            "traffic": {
                **_entries(second),
                "batch": self.spec.training.batch_size,
                "width": self.spec.width,
                **noting.travelled(),
            },
        }

    def _earlier(self, first: TrainingResult) -> PastDataset:
        heads = first.model_state.heads
        return PastDataset.in_memory(
            "first", self.first, first.moments, weights_of(self.first, heads)
        )


def make_parent(spec: ModelSpec, part: Part, path: Path) -> None:
    """Write the state of a model after its first dataset."""
    torch.save(learn(spec, initial_state(spec), Task(part.pair, part.held, seed=7)), path)


def _moments(learned: TrainingResult) -> list[torch.Tensor]:
    moments = learned.moments
    return [moments.first.sum_II, moments.second.sum_II, moments.cross_IJ]


def _entries(learned: TrainingResult) -> dict[str, int]:
    spaces = learned.spaces.values()
    return {
        "updates": learned.trained.updates,
        "free": sum(int(space.free_EI.sum()) for space in spaces),
        "entries": sum(space.free_EI.numel() for space in spaces),
    }


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
