"""Constants of this machine, each measured separately while all processes of a group do the same.

No update runs here: products, passes and collectives are timed one by one. Shapes: L rows of a
rank, B of a batch, E width of the embeddings, I of what a head reads.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from statistics import fmean, median

import torch
from torch import Tensor

from benchmarks.scaling.group import seconds_alternating, seconds_in_cycle
from workers.model.loss import Everywhere, symmetric_info_nce, unit
from workers.train.distributed import AsyncGather, World

Points = dict[float, float]
Task = Callable[[], object]
Curves = Mapping[str, Iterable[tuple[float, Task]]]
Timer = Callable[[Sequence[Task]], list[float]]

_DIMENSIONS = (32, 64, 128, 256, 512, 1024)
_WIDE = 1024
_SCORES = ((32, 128), (64, 256), (256, 256), (256, 1024), (1024, 1024))
_THIN = 8
_WIDTHS = (64, 256, 512, 1024)
_ROWS = 8192
_WORK = (32, 128, 512, 2048)
# Lower bound of a difference, because a logarithmic curve cannot have zero.
_LEAST = 1e-6
_BYTES = (1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22, 1 << 23)


def constants_of_one() -> dict[str, Points]:
    """Return constants of computation in one process; sizes as in `model.Rates`."""
    curves: Curves = {
        "rows product": ((size, _rows_product(size)) for size in _DIMENSIONS),
        "inner product": ((size, _inner_product(size)) for size in _DIMENSIONS),
        "scores, one direction": ((r * c, partial(_scores_alone, r)) for r, c in _SCORES if r == c),
        "scores, two directions": ((r * c, partial(_scores_of_many, r, c)) for r, c in _SCORES),
        "heads": ((2 * width * width, _heads(width)) for width in _WIDTHS),
        "rows": ((rows * 2 * _WIDE, _rows(rows)) for rows in _DIMENSIONS),
        "packing": ((2 * width * width, _packing(width)) for width in _WIDTHS),
    }
    return _measured(curves, seconds_in_cycle)


def constants_of_many(here: World) -> dict[str, Points]:
    """Return constants of collectives by bytes per rank, if all ranks enter them at the same
    time."""
    collectives: Curves = {
        "gather": ((size, _gather(size, here)) for size in _BYTES),
        "reduce": ((size, _reduce(size)) for size in _BYTES),
    }
    return _measured(collectives, seconds_alternating)


def waiting() -> Points:
    """Return the additional time of a collective after some work, by seconds of the work with
    fairly shared cores.

        Ranks do not finish at the same time, in particular if they share a core. The scheduling
        varies from minute to minute, so use `usual_waiting` of several measurements.
    """
    meeting, works = _reduce(_BYTES[0]), [_rows_product(rows) for rows in _WORK]
    both = [partial(_one_after_the_other, work, meeting) for work in works]
    alone, *found = seconds_alternating([meeting, *works, *both])
    together = torch.tensor(found[len(works) :], dtype=torch.float64)
    torch.distributed.all_reduce(together, op=torch.distributed.ReduceOp.MAX)
    apart = fair_share_seconds(torch.tensor(found[: len(works)], dtype=torch.float64)) + alone
    longer = together - apart
    return dict(zip(apart.tolist(), longer.clamp(min=_LEAST).tolist(), strict=True))


def fair_share_seconds(seconds: Tensor) -> Tensor:
    """Return the seconds that each process would need with fairly shared cores. A process with its
    own core needs half the time of two that share one."""
    rates = 1 / seconds
    torch.distributed.all_reduce(rates)
    return torch.distributed.get_world_size() / rates


def usual_waiting(looks: Sequence[Points]) -> Points:
    """Return the typical value of several measurements of the same work."""
    works = zip(*(sorted(look.items()) for look in looks), strict=True)
    usual = [
        (fmean(work), median(longer))
        for work, longer in (zip(*each, strict=True) for each in works)
    ]
    # Waiting does not decrease with more work, but the noise of a difference of two timings may
    # suggest it.
    most = accumulate((longer for _, longer in usual), max)
    return dict(zip((work for work, _ in usual), most, strict=True))


def _one_after_the_other(first: Task, second: Task) -> None:
    first()
    second()


def _measured(curves: Curves, seconds_of: Timer) -> dict[str, Points]:
    """Measure all curves alternately, under the same conditions."""
    tasks = {name: dict(of_curve) for name, of_curve in curves.items()}
    found = iter(seconds_of([task for each in tasks.values() for task in each.values()]))
    return {name: {size: next(found) for size in each} for name, each in tasks.items()}


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _rows_product(rows: int) -> Callable[[], Tensor]:
    left, right = _random(rows, _WIDE), _random(_WIDE, _WIDE)
    return lambda: left @ right.mT


def _inner_product(inner: int) -> Callable[[], Tensor]:
    left, right = _random(inner, _WIDE), _random(inner, _WIDE)
    return lambda: left.mT @ right


def _scores_alone(rows: int) -> None:
    """Compute the loss and its gradient with narrow embeddings, so that products cost almost
    nothing."""
    local = _thin(rows)
    loss = symmetric_info_nce(local, torch.eye(rows, dtype=torch.bool), 0.07)
    loss.backward()  # type: ignore[no-untyped-call]


def _scores_of_many(rows: int, columns: int) -> None:
    """Compute the same for one of several ranks, with copies of its own data in place of the
    others'."""

    def repeated(local_LX: Tensor) -> Tensor:
        return local_LX.repeat(columns // rows, 1)

    local = _thin(rows)
    first, second = (repeated(side.detach()) for side in local)
    everywhere = Everywhere(first, second, repeated)
    positive_LB = torch.eye(rows, columns, dtype=torch.bool)
    loss = symmetric_info_nce(local, positive_LB, 0.07, everywhere)
    loss.backward()  # type: ignore[no-untyped-call]


def _thin(rows: int) -> tuple[Tensor, Tensor]:
    first, second = (unit(_random(rows, _THIN)).requires_grad_() for _ in range(2))
    return first, second


def _heads(width: int) -> Callable[[], None]:
    """Return passes over a head: W₀ + M, mask, AdamW and average, as in workers/model/pair.py and
    workers/train."""
    changes = [torch.nn.Parameter(torch.zeros(width, width)) for _ in range(2)]
    starts, means = ([_random(width, width) for _ in changes] for _ in range(2))
    slopes = [_random(width, width) for _ in changes]
    free = [(slope > 0).float() for slope in slopes]
    optimizer = torch.optim.AdamW(changes, lr=1e-3, fused=True)

    def passes() -> None:
        with torch.no_grad():
            sums = [start + change for start, change in zip(starts, changes, strict=True)]
            for change, mask, slope in zip(changes, free, slopes, strict=True):
                change.grad = slope.mul_(mask)
        optimizer.step()
        del sums
        with torch.no_grad():
            for mean, change in zip(means, changes, strict=True):
                mean.lerp_(change, 0.1)

    return passes


def _rows(rows: int) -> Callable[[], None]:
    """Return the selection of rows of both sides from memory, and normalisation forward and
    backward."""
    sides = [_random(_ROWS, _WIDE) for _ in range(2)]
    index = torch.randperm(_ROWS)[:rows]

    def passes() -> None:
        for side in sides:
            chosen = side[index].requires_grad_()
            unit(chosen).backward(chosen.detach())  # type: ignore[no-untyped-call]

    return passes


def _packing(width: int) -> Callable[[], None]:
    """Return what DDP does with two gradients apart from the collective: copy both into its bucket,
    and with the product's hook the free entries out of the bucket and back."""
    slopes = [_random(width * width) for _ in range(2)]
    index = [(one > 0).nonzero().flatten() for one in slopes]
    bucket = torch.cat(slopes)
    gradients = bucket.split([len(one) for one in slopes])  # type: ignore[no-untyped-call]

    def passes() -> None:
        for slope, gradient in zip(slopes, gradients, strict=True):
            gradient.copy_(slope)
        chosen = [one.index_select(0, free) for one, free in zip(gradients, index, strict=True)]
        packed = torch.cat(chosen).div_(2)
        parts = packed.split([len(free) for free in index])  # type: ignore[no-untyped-call]
        for gradient, free, part in zip(gradients, index, parts, strict=True):
            gradient.scatter_(0, free, part)

    return passes


def _gather(size: int, here: World) -> Callable[[], Tensor]:
    own = torch.zeros(size // 4, 1)
    return lambda: AsyncGather(own, [len(own)] * here.size, here).wait()


def _reduce(size: int) -> Callable[[], object]:
    payload = torch.zeros(size // 4)
    return lambda: torch.distributed.all_reduce(payload)
