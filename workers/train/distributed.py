"""Every collective, and nothing else that knows of ranks. Alone, a collective returns its argument.

Shapes: B rows of the global batch, L of them local, E width of the embeddings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from workers.nullspace.moments import PairMoments, SecondMoment

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """True in the one rank that writes."""
        return self.rank == 0


ALONE = World(0, 1)


def world() -> World:
    """The process group that this process belongs to; a world of one where there is none."""
    if not dist.is_initialized():
        return ALONE
    return World(dist.get_rank(), dist.get_world_size())


def share_of(rows: int, here: World) -> slice:
    """This rank's contiguous part of `rows` rows; parts differ by one row at most."""
    return slice(rows * here.rank // here.size, rows * (here.rank + 1) // here.size)


def gather_rows(local_LE: Tensor, rows: int, here: World) -> Tensor:
    """Rows of all ranks in order (B × E); the gradient flows back to the rank that owns a row."""
    if here.size == 1:
        return local_LE
    gathered: Tensor = _GatherRows.apply(local_LE, rows, here)
    return gathered


class _GatherRows(torch.autograd.Function):
    """Forward: all-gather. Backward: sum over ranks, then take the own rows.

    Not torch.distributed.nn's: that one multiplies gradients by the world size under DDP's
    averaging (open_clip issue 616), and this one takes parts of unequal length.
    """

    @staticmethod
    def forward(ctx: Any, local_LE: Tensor, rows: int, here: World) -> Tensor:
        ctx.own, ctx.rows = share_of(rows, here), rows
        lengths = [_length(share_of(rows, World(rank, here.size))) for rank in range(here.size)]
        longest = max(lengths)
        padded = local_LE.new_zeros(longest, local_LE.shape[1])
        padded[: len(local_LE)] = local_LE
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total_BE = gradients[0].contiguous()
        dist.all_reduce(total_BE)
        return total_BE[ctx.own], None, None


def sum_moment(local: SecondMoment, here: World) -> SecondMoment:
    """The moment of all ranks' rows, equal to the bit on every rank (float64 sums)."""
    if here.size == 1:
        return local
    count, sum_II = torch.tensor([local.count], dtype=torch.int64), local.sum_II.clone()
    for tensor in (count, sum_II):
        dist.all_reduce(tensor)
    return SecondMoment(int(count), sum_II)


def sum_moments(local: PairMoments, here: World) -> PairMoments:
    """The moments of all ranks' rows, both sides and crosswise."""
    if here.size == 1:
        return local
    cross_IJ = local.cross_IJ.clone()
    dist.all_reduce(cross_IJ)
    return PairMoments(sum_moment(local.first, here), sum_moment(local.second, here), cross_IJ)


def broadcast(tensors: Sequence[Tensor], here: World) -> None:
    """Overwrite the tensors with those of the leading rank: bases must agree to the bit."""
    if here.size == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor, src=0)


def agreed(mine: bool, here: World) -> bool:
    """The leading rank's answer to a question that two ranks could answer apart."""
    answer = torch.tensor([int(mine)])
    broadcast([answer], here)
    return bool(answer)


def united(mine: Mapping[str, T], here: World) -> dict[str, T]:
    """What the ranks found out, each about its own part; in the order of the keys."""
    parts: list[Any] = [dict(mine)]
    if here.size > 1:
        parts *= here.size
        dist.all_gather_object(parts, dict(mine))
    return dict(sorted(item for part in parts for item in part.items()))


def meet(here: World) -> None:
    """Wait until every rank has come here."""
    if here.size > 1:
        dist.barrier()


def sum_scalar(value: Tensor, here: World) -> float:
    """The sum over ranks of one number."""
    if here.size > 1:
        value = value.clone()
        dist.all_reduce(value)
    return float(value)


def _length(part: slice) -> int:
    return int(part.stop - part.start)
