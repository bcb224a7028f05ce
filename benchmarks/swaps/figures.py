"""What the answers say: failures, mixed answers, latency while versions swap and while none does."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.endpoint.load import KINDS, WRONG, Answers
from benchmarks.swaps.mover import Move

_OK = 200


@dataclass(frozen=True)
class Swap:
    """A move of the pointer, and how many seconds later its version was everywhere.

    `next_at`: when the next move came. `everywhere` is None where the version was not everywhere then.
    """

    move: Move
    everywhere: float | None
    next_at: float

    @property
    def over_at(self) -> float:
        """Replicas differed until then, or went on to differ."""
        return self.next_at if self.everywhere is None else self.move.at + self.everywhere


def followed(moves: Sequence[Move], answers: Answers, end: float) -> list[Swap]:
    """When each version was everywhere: once the last answer by another one had come.

    Counted are requests that were sent between this move and the next (the last one's until `end`),
    but for those that the next move's version answered after it. None where none of them had a later
    answer by the new version.
    """
    good = np.sort(answers[answers["status"] == _OK], order="sent")
    times = [*(move.at for move in moves), end]
    followers: list[Move | None] = [*moves[1:], None]
    edges = np.searchsorted(good["sent"], times)
    spans = zip(moves, followers, edges, edges[1:], times[1:], strict=False)
    return [
        Swap(move, _everywhere(move, _by_then(good[first:last], following)), next_at)
        for move, following, first, last, next_at in spans
    ]


def _by_then(answers: Answers, following: Move | None) -> Answers:
    """Without those that the move that follows has brought about."""
    if following is None:
        return answers
    came = answers["sent"] + answers["seconds"]
    counted: Answers = answers[(came <= following.at) | (answers["version"] != following.version)]
    return counted


def _everywhere(move: Move, answers: Answers) -> float | None:
    came = answers["sent"] + answers["seconds"]
    is_new = answers["version"] == move.version
    if not is_new.any():
        return None
    if is_new.all():
        return max(0.0, float(came.min()) - move.at)
    latest_old = came[~is_new].max()
    return float(latest_old) - move.at if came[is_new].max() > latest_old else None


def failures(answers: Answers) -> dict[str, int]:
    """How many of each kind got no answer with status 200."""
    kinds = Counter(answers["status"].tolist())
    return {KINDS.get(kind, str(kind)): n for kind, n in kinds.items() if kind != _OK}


def wrong(answers: Answers) -> int:
    """Answers that are not those of the version that they name."""
    return int((answers["checked"] == WRONG).sum())


def latency(answers: Answers) -> dict[str, float]:
    """Milliseconds, of the good answers."""
    times = 1000 * answers["seconds"][answers["status"] == _OK]
    if not len(times):
        return {}
    p50, p95, p99 = np.percentile(times, (50, 95, 99))
    return {"answers": len(times), "p50": float(p50), "p95": float(p95), "p99": float(p99)}


def parted(
    answers: Answers, spans: Sequence[tuple[float, float]], begin: float, end: float
) -> tuple[list[Answers], list[Answers]]:
    """Those that were asked for before, between and after the spans, and those within each."""
    starts, ends = [span[0] for span in spans], [span[1] for span in spans]
    outside = zip([begin, *ends], [*starts, end], strict=True)
    return [_between(answers, *each) for each in outside], [
        _between(answers, *each) for each in spans
    ]


def _between(answers: Answers, begin: float, end: float) -> Answers:
    found: Answers = answers[(answers["sent"] >= begin) & (answers["sent"] < end)]
    return found


def during(answers: Answers, swaps: Sequence[Swap]) -> Answers:
    """Those that were under way between a move of the pointer and the moment at which all followed."""
    ended = answers["sent"] + answers["seconds"]
    hit = np.zeros(len(answers), bool)
    for swap in swaps:
        hit |= (answers["sent"] < swap.over_at) & (ended > swap.move.at)
    found: Answers = answers[hit]
    return found


def swap_times(swaps: Sequence[Swap]) -> dict[str, Any]:
    """Milliseconds from the pointer's move until no answer was by another version.

    Of those that got there; `never` says how many did not.
    """
    found = np.array([each.everywhere for each in swaps if each.everywhere is not None])
    late = sum(each.everywhere is None for each in swaps)
    if not len(found):
        return {"never": late}
    p50, p95 = np.percentile(1000 * found, (50, 95))
    most = float(1000 * found.max())
    return {"p50": float(p50), "p95": float(p95), "most": most, "never": late}
