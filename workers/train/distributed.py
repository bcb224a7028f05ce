"""All collectives. With a single process each returns its argument.

Shapes: B rows of the global batch, L of them local, E width of the embeddings, I and J widths of
what two heads read.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from workers.nullspace.moments import PairMoments, SecondMoment, symmetric, triangle

T = TypeVar("T")
S = TypeVar("S")

# Timeout of collectives that ranks reach after reading their own share of rows.
_SLOW_TIMEOUT = timedelta(hours=12)
_slow_groups: WeakKeyDictionary[Any, ref[Any]] = WeakKeyDictionary()


@dataclass
class Traffic:
    """Bytes that this rank contributed to collectives, by kind."""

    gathered: int = 0
    reduced: int = 0
    broadcast: int = 0


@dataclass(frozen=True)
class World:
    """The rank of this process and the number of ranks."""

    rank: int
    size: int
    traffic: Traffic = field(default_factory=Traffic, compare=False)
    slow_group: dist.ProcessGroup | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.size

    @property
    def is_leader(self) -> bool:
        """Whether this is rank 0, the only one that writes."""
        return self.rank == 0


SINGLE_PROCESS = World(0, 1)


def world() -> World:
    """The process group of this process; a world of one if there is none."""
    if not dist.is_initialized():
        return SINGLE_PROCESS
    return World(dist.get_rank(), dist.get_world_size(), slow_group=_slow_group(dist.group.WORLD))


def _slow_group(group: Any) -> Any:
    """The same ranks with a timeout of hours. Created once, by all ranks at the same point.

    torch holds it until the process group is destroyed. A longer reference would keep its threads
    alive, and a group whose last work is released while Python exits aborts the process
    (docs/log.md). Hence the weak reference.
    """
    known = _slow_groups.get(group)
    slow = known() if known else None
    if slow is None:
        slow = dist.new_group(dist.get_process_group_ranks(group), _SLOW_TIMEOUT, backend="gloo")
        _slow_groups[group] = ref(slow)
    return slow


def rank_slice(rows: int, here: World) -> slice:
    """This rank's contiguous slice of `rows` rows; slices differ by one row at most."""
    return slice(rows * here.rank // here.size, rows * (here.rank + 1) // here.size)


def rank_lengths(rows: int, here: World) -> tuple[int, ...]:
    """The length of each rank's slice of `rows` rows."""
    ends = [rows * rank // here.size for rank in range(here.size + 1)]
    assert ends[0] == 0
    assert ends[-1] == rows
    return tuple(end - start for start, end in pairwise(ends))


class AsyncGather:
    """An asynchronous all-gather of rows: this rank can compute until it calls `wait`."""

    def __init__(self, local_LX: Tensor, lengths: Sequence[int], here: World) -> None:
        assert len(lengths) == here.size
        assert len(local_LX) == lengths[here.rank]
        self._lengths, self._alone = lengths, local_LX if here.size == 1 else None
        if self._alone is not None:
            return
        padded = local_LX.contiguous()
        if len(padded) < max(lengths):
            # all_gather needs parts of equal length.
            missing = padded.new_zeros(max(lengths) - len(padded), *padded.shape[1:])
            padded = torch.cat([padded, missing])
        self._parts = [torch.empty_like(padded) for _ in lengths]
        here.traffic.gathered += padded.nbytes
        self._work: Any = dist.all_gather(self._parts, padded, async_op=True)

    def wait(self) -> Tensor:
        """Return the rows of all ranks, in the order of the ranks."""
        if self._alone is not None:
            return self._alone
        self._work.wait()
        parts = zip(self._parts, self._lengths, strict=True)
        return torch.cat([part[:length] for part, length in parts])


def all_gather_rows(local_LX: Tensor, rows: int, here: World) -> Tensor:
    """All `rows` rows, of which each rank has its slice."""
    return AsyncGather(local_LX, rank_lengths(rows, here), here).wait()


def data_parallel(module: nn.Module, free: Mapping[nn.Parameter, Tensor], here: World) -> nn.Module:
    """Wrap the module in DDP: backward leaves the mean of the ranks' gradients.

    Of a parameter in `free` (bool masks) only the free entries are reduced, packed. The gradients of
    the others must be zero.
    """
    if here.size == 1:
        return module
    # Buffers are equal on all ranks and never change; DDP would broadcast them in every update.
    wrapped = DistributedDataParallel(
        module, forward_sync_buffers=False, gradient_as_bucket_view=True
    )
    index = {
        parameter: mask.flatten().nonzero().flatten()
        for parameter, mask in free.items()
        if not bool(mask.all())
    }
    wrapped.register_comm_hook(_Packing(index, here), _reduce_packed)
    return wrapped


@dataclass(frozen=True)
class _Packing:
    index: Mapping[nn.Parameter, Tensor]
    here: World


def _reduce_packed(
    packing: _Packing,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """DDP's communication hook: all-reduce the free entries of one bucket of gradients."""
    flat = [
        (gradient.view(-1), packing.index.get(parameter))
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True)
    ]
    # Advanced indexing takes five times as long as index_select and scatter_.
    parts = [
        gradient if index is None else gradient.index_select(0, index) for gradient, index in flat
    ]
    packed = torch.cat(parts).div_(packing.here.size)
    packing.here.traffic.reduced += packed.nbytes

    def unpack(done: torch.futures.Future[list[Tensor]]) -> Tensor:
        reduced = torch.split(done.value()[0], [len(part) for part in parts])
        for (gradient, index), part in zip(flat, reduced, strict=True):
            if index is None:
                gradient.copy_(part)
            else:
                gradient.scatter_(0, index, part)
        whole: Tensor = bucket.buffer()
        return whole

    work: Any = dist.all_reduce(packed, async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(unpack)
    return future


def all_reduce_moment(local: SecondMoment, here: World) -> SecondMoment:
    """Sum a moment over the ranks. The result is bit-equal on all of them (float64, on the host)."""
    if here.size == 1:
        return local
    count, half = _sum([_count(local.count), triangle(local.sum_II)], here)
    assert count >= local.count
    return SecondMoment(int(count), symmetric(half, len(local.sum_II)))


def all_reduce_pair_moments(local: PairMoments, here: World) -> PairMoments:
    """Sum both moments and the cross moment over the ranks, in one reduction."""
    if here.size == 1:
        return local
    sides = local.first.sum_II, local.second.sum_II
    parts = [_count(local.count), *map(triangle, sides), local.cross_IJ.reshape(-1)]
    count, *halves, cross = _sum(parts, here)
    assert count >= local.count
    first, second = (
        SecondMoment(int(count), symmetric(half, len(side)))
        for half, side in zip(halves, sides, strict=True)
    )
    return PairMoments(first, second, cross.view_as(local.cross_IJ))


def _sum(parts: Sequence[Tensor], here: World) -> tuple[Tensor, ...]:
    packed = torch.cat(list(parts))
    here.traffic.reduced += packed.nbytes
    dist.all_reduce(packed)
    return torch.split(packed, [len(part) for part in parts])


def _count(rows: int) -> Tensor:
    return torch.tensor([rows], dtype=torch.float64)


def broadcast(tensors: Sequence[Tensor], here: World) -> None:
    """Overwrite the tensors with those of rank 0."""
    if here.size == 1:
        return
    for tensor in tensors:
        here.traffic.broadcast += tensor.nbytes
        dist.broadcast(tensor, src=0)


def broadcast_object(find: Callable[[], T], here: World, source: int = 0) -> T:
    """What `find` returns on one rank, for questions that ranks could answer differently."""
    if here.size == 1:
        return find()
    sent: list[Any] = [find() if here.rank == source else None]
    dist.broadcast_object_list(sent, src=source)
    received: T = sent[0]
    return received


def when_leader_is_done(find: Callable[[], T], here: World) -> T:
    """What `find` returns on rank 0, which may take hours. With the timeout of `barrier`.

    While the others wait, rank 0 has the threads of all ranks of its node.
    """
    return side_by_side(find, lambda: None, here)[0]


def side_by_side(find: Callable[[], T], other: Callable[[], S], here: World) -> tuple[T, S]:
    """`when_leader_is_done`, and what `other` returns on the last rank while rank 0 computes."""
    found: Any = None
    if here.is_leader:
        own = torch.get_num_threads()
        # Set by Ray Train and torchrun. A rank has as many threads as Ray reserved CPUs for it.
        torch.set_num_threads(own * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        try:
            found = find()
        finally:
            torch.set_num_threads(own)
    last = here.size - 1
    also = other() if here.rank == last else None
    barrier(here)
    # Only these ranks call the functions, after both have returned.
    found = broadcast_object(lambda: found, here)
    return found, broadcast_object(lambda: also, here, last)  # type: ignore[return-value]


def all_gather_dict(mine: Mapping[str, T], here: World) -> dict[str, T]:
    """Union of the ranks' dictionaries, whose keys are disjoint, sorted by key."""
    parts: list[Any] = [dict(mine)]
    if here.size > 1:
        parts *= here.size
        dist.all_gather_object(parts, dict(mine))
    found = dict(sorted(item for part in parts for item in part.items()))
    assert len(found) == sum(map(len, parts)), "two ranks measured the same"
    return found


def rank_share(items: Sequence[T], here: World) -> Sequence[T]:
    """This rank's part of the items, always the same one, so that what it has cached is used.

    The last rank has the largest part, and rank 0, which does more otherwise, the smallest.
    """
    return items[here.size - 1 - here.rank :: here.size]


def barrier(here: World) -> None:
    """Barrier with a timeout of 12 hours, since ranks may read their rows for that long.

    Other collectives time out after a minute (`CMCL_PEER_SECONDS`), which ends a hang of the ranks.
    A rank that hangs before it reaches the barrier is found by Ray's health check.
    """
    if here.size > 1:
        dist.barrier(group=here.slow_group)


def all_reduce_max(value: float, here: World) -> float:
    """The largest of the ranks' numbers, none of them NaN. With the timeout of `barrier`."""
    if here.size == 1:
        return value
    largest = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=here.slow_group)
    return float(largest)


def all_reduce_sum(values_N: Tensor, here: World) -> list[float]:
    """The sums over ranks of some numbers. Synchronises with the device."""
    if here.size > 1:
        values_N = values_N.clone()
        dist.all_reduce(values_N)
    sums: list[float] = values_N.tolist()
    return sums
