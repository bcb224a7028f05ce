"""Every collective, and nothing else that knows of ranks. Alone, a collective returns its argument.

Shapes: B rows of the global batch, L of them local, E width of the embeddings, I and J widths of
what two heads read.
"""

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

from workers.nullspace.moments import PairMoments, SecondMoment

T = TypeVar("T")

_LATEST = timedelta(hours=12)
_late_groups: WeakKeyDictionary[Any, ref[Any]] = WeakKeyDictionary()


@dataclass
class Traffic:
    """Bytes that this rank gave to collectives: what it contributes, whatever way they travel."""

    gathered: int = 0
    reduced: int = 0
    broadcast: int = 0


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    traffic: Traffic = field(default_factory=Traffic, compare=False)
    late: dist.ProcessGroup | None = field(default=None, compare=False)

    @property
    def leads(self) -> bool:
        """True in the one rank that writes."""
        return self.rank == 0


ALONE = World(0, 1)


def world() -> World:
    """The process group that this process belongs to; a world of one where there is none."""
    if not dist.is_initialized():
        return ALONE
    return World(dist.get_rank(), dist.get_world_size(), late=_late_group(dist.group.WORLD))


def _late_group(group: Any) -> Any:
    """The same ranks, with more patience; made once, while they all stand at the same line.

    torch holds it until the process group is destroyed. Whoever holds it longer keeps its threads,
    and one that lets go of its last work while Python ends aborts the process (docs/log.md).
    """
    known = _late_groups.get(group)
    late = known() if known else None
    if late is None:
        late = dist.new_group(dist.get_process_group_ranks(group), _LATEST, backend="gloo")
        _late_groups[group] = ref(late)
    return late


def share_of(rows: int, here: World) -> slice:
    """This rank's contiguous part of `rows` rows; parts differ by one row at most."""
    return slice(rows * here.rank // here.size, rows * (here.rank + 1) // here.size)


def lengths_of(rows: int, here: World) -> tuple[int, ...]:
    """The length of each rank's part of `rows` rows."""
    ends = [rows * rank // here.size for rank in range(here.size + 1)]
    return tuple(end - start for start, end in pairwise(ends))


class Gathering:
    """Rows of all ranks, on their way while this rank goes on."""

    def __init__(self, local_LX: Tensor, lengths: Sequence[int], here: World) -> None:
        self._lengths, self._alone = lengths, local_LX if here.size == 1 else None
        if self._alone is not None:
            return
        padded = local_LX.contiguous()
        if len(padded) < max(lengths):
            # Collectives want parts of one length.
            missing = padded.new_zeros(max(lengths) - len(padded), *padded.shape[1:])
            padded = torch.cat([padded, missing])
        self._parts = [torch.empty_like(padded) for _ in lengths]
        here.traffic.gathered += padded.nbytes
        self._work: Any = dist.all_gather(self._parts, padded, async_op=True)

    def wait(self) -> Tensor:
        """Those rows, in the order of the ranks."""
        if self._alone is not None:
            return self._alone
        self._work.wait()
        parts = zip(self._parts, self._lengths, strict=True)
        return torch.cat([part[:length] for part, length in parts])


def gathered(local_LX: Tensor, rows: int, here: World) -> Tensor:
    """All `rows` rows, of which each rank has its share."""
    return Gathering(local_LX, lengths_of(rows, here), here).wait()


def averaged(module: nn.Module, free: Mapping[nn.Parameter, Tensor], here: World) -> nn.Module:
    """The module under DDP: backward leaves the mean of the ranks' gradients, each as soon as it is there.

    Of a parameter in `free` (bool masks) only free entries travel, packed; the gradients of the
    others must be zero. Masking is linear, so masked before is the same as masked after.
    """
    if here.size == 1:
        return module
    # Buffers are made alike once and never change; DDP would send them with every update.
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
    """DDP's hook for one bucket of gradients."""
    flat = [
        (gradient.view(-1), packing.index.get(parameter))
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True)
    ]
    # Indexing by brackets, for any shape of index, takes five times as long as these two.
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


def sum_moment(local: SecondMoment, here: World) -> SecondMoment:
    """The moment of all ranks' rows, equal to the bit on every rank (float64 sums on the host)."""
    if here.size == 1:
        return local
    count, half = _sum([_count(local.count), _half(local.sum_II)], here)
    return SecondMoment(int(count), _whole(half, len(local.sum_II)))


def sum_moments(local: PairMoments, here: World) -> PairMoments:
    """The moments of all ranks' rows, both sides and crosswise, by one reduction."""
    if here.size == 1:
        return local
    sides = local.first.sum_II, local.second.sum_II
    parts = [_count(local.count), *map(_half, sides), local.cross_IJ.reshape(-1)]
    count, *halves, cross = _sum(parts, here)
    first, second = (
        SecondMoment(int(count), _whole(half, len(side)))
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


def _half(sum_II: Tensor) -> Tensor:
    """Of a symmetric sum the upper triangle: the other half need not travel."""
    return sum_II[torch.triu_indices(*sum_II.shape).unbind()]


def _whole(half: Tensor, width: int) -> Tensor:
    sum_II = half.new_zeros(width, width)
    upper = torch.triu_indices(width, width).unbind()
    sum_II[upper] = half
    sum_II.mT[upper] = half
    return sum_II


def broadcast(tensors: Sequence[Tensor], here: World) -> None:
    """Overwrite the tensors with those of the leading rank: bases must agree to the bit."""
    if here.size == 1:
        return
    for tensor in tensors:
        here.traffic.broadcast += tensor.nbytes
        dist.broadcast(tensor, src=0)


def from_leader(find: Callable[[], T], here: World) -> T:
    """What the leading rank finds out, where two ranks could find different things."""
    if here.size == 1:
        return find()
    told: list[Any] = [find() if here.leads else None]
    dist.broadcast_object_list(told, src=0)
    answer: T = told[0]
    return answer


def united(mine: Mapping[str, T], here: World) -> dict[str, T]:
    """What the ranks found out, each about its own part; in the order of the keys."""
    parts: list[Any] = [dict(mine)]
    if here.size > 1:
        parts *= here.size
        dist.all_gather_object(parts, dict(mine))
    return dict(sorted(item for part in parts for item in part.items()))


def meet(here: World) -> None:
    """Wait until every rank has come here; some may come hours later, from reading their share.

    Other collectives give a rank up after a minute, for a rank that hangs in one is late in all. One
    that hangs on its way to here is found by Ray's health check.
    """
    if here.size > 1:
        dist.barrier(group=here.late)


def largest(value: float, here: World) -> float:
    """The largest of the ranks' numbers, none of them NaN; they may come late from their share."""
    if here.size == 1:
        return value
    told = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(told, op=dist.ReduceOp.MAX, group=here.late)
    return float(told)


def summed(values_N: Tensor, here: World) -> list[float]:
    """The sums over ranks of some numbers; waits for the device."""
    if here.size > 1:
        values_N = values_N.clone()
        dist.all_reduce(values_N)
    sums: list[float] = values_N.tolist()
    return sums
