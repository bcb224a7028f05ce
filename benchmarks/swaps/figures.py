"""Figures from answers: failures, wrong responses, and latency with and without swaps."""

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
    """A move of the pointer, and the seconds until all replicas served its version.

    `next_at`: time of the next move. `everywhere` is None if not all replicas served the version by
    then.
    """

    move: Move
    everywhere: float | None
    next_at: float

    @property
    def over_at(self) -> float:
        """Time until which replicas served different versions."""
        return self.next_at if self.everywhere is None else self.move.at + self.everywhere


def followed(moves: Sequence[Move], answers: Answers, end: float) -> list[Swap]:
    """Return when each version was served everywhere: at the last response by another version.

    Counts requests sent between this move and the next (for the last one until `end`), except
    those answered by the next move's version after it. None if no later response came from the
    new version.
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
    """Return answers without those caused by the next move."""
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
    """Return the number of requests without status 200, by kind."""
    kinds = Counter(answers["status"].tolist())
    return {KINDS.get(kind, str(kind)): n for kind, n in kinds.items() if kind != _OK}


def wrong(answers: Answers) -> int:
    """Return the number of responses that do not match the version that they name."""
    return int((answers["checked"] == WRONG).sum())


def latency(answers: Answers) -> dict[str, float]:
    """Return latency in milliseconds of successful answers."""
    times = 1000 * answers["seconds"][answers["status"] == _OK]
    if not len(times):
        return {}
    p50, p95, p99 = np.percentile(times, (50, 95, 99))
    return {"answers": len(times), "p50": float(p50), "p95": float(p95), "p99": float(p99)}


def parted(
    answers: Answers, spans: Sequence[tuple[float, float]], begin: float, end: float
) -> tuple[list[Answers], list[Answers]]:
    """Return the answers to requests sent outside the spans, and those within each span."""
    starts, ends = [span[0] for span in spans], [span[1] for span in spans]
    outside = zip([begin, *ends], [*starts, end], strict=True)
    return [_between(answers, *each) for each in outside], [
        _between(answers, *each) for each in spans
    ]


def _between(answers: Answers, begin: float, end: float) -> Answers:
    found: Answers = answers[(answers["sent"] >= begin) & (answers["sent"] < end)]
    return found


def during(answers: Answers, swaps: Sequence[Swap]) -> Answers:
    """Return answers that were in progress between a move of the pointer and its completion."""
    ended = answers["sent"] + answers["seconds"]
    hit = np.zeros(len(answers), bool)
    for swap in swaps:
        hit |= (answers["sent"] < swap.over_at) & (ended > swap.move.at)
    found: Answers = answers[hit]
    return found


def swap_times(swaps: Sequence[Swap]) -> dict[str, Any]:
    """Return milliseconds from the pointer's move until no response came from another version.

    `never` counts swaps that did not complete.
    """
    found = np.array([each.everywhere for each in swaps if each.everywhere is not None])
    late = sum(each.everywhere is None for each in swaps)
    if not len(found):
        return {"never": late}
    p50, p95 = np.percentile(1000 * found, (50, 95))
    most = float(1000 * found.max())
    return {"p50": float(p50), "p95": float(p95), "most": most, "never": late}
