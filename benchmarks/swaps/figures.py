"""What the answers say: failures, mixed answers, latency while versions swap and while none does."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.endpoint.load import KINDS, WRONG, Answers
from benchmarks.swaps.mover import Swap

_OK = 200


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


def between(answers: Answers, begin: float, end: float) -> Answers:
    """Those that were asked for in that time."""
    found: Answers = answers[(answers["sent"] >= begin) & (answers["sent"] < end)]
    return found


def during(answers: Answers, swaps: Sequence[Swap]) -> Answers:
    """Those that were under way between a move of the pointer and the moment at which all followed."""
    ended = answers["sent"] + answers["seconds"]
    hit = np.zeros(len(answers), bool)
    for swap in swaps:
        until = swap.at + (swap.everywhere or 0)
        hit |= (answers["sent"] < until) & (ended > swap.at)
    found: Answers = answers[hit]
    return found


def swap_times(swaps: Sequence[Swap]) -> dict[str, Any]:
    """Milliseconds from the pointer's move until every replica answered by it."""
    found = np.array([each.everywhere for each in swaps if each.everywhere is not None])
    late = sum(each.everywhere is None for each in swaps)
    if not len(found):
        return {"never": late}
    p50, p95 = np.percentile(1000 * found, (50, 95))
    most = float(1000 * found.max())
    return {"p50": float(p50), "p95": float(p95), "most": most, "never": late}
