"""The endpoint under schedules that seeds decide, in virtual time: what holds whatever fails, and whoever comes first.

CMCL_FAULT_SCHEDULES=100000 runs more of them; `python -m tests.faults.endpoint_story` runs them without pytest.
"""

import gc
import os
from collections import Counter, defaultdict

import pytest

from tests.faults.endpoint_story import INVARIANTS, broken_schedules, described

_SCHEDULES = int(os.environ.get("CMCL_FAULT_SCHEDULES", "1000"))
# What a thousand schedules contain of each; without, the invariants would hold of nothing.
_CONTAINS = {
    *("publish", "roll back", "retire", "delete", "late write", "damage", "restart"),
    *("lose channel", "failed calls", "hangs", "slow"),
    *(f"status {status}" for status in (200, 404, 429, 503, 504)),
}


@pytest.fixture(scope="module")
def broken() -> dict[str, list[tuple[int, str]]]:
    """By invariant, seeds of schedules that broke it, and what happened."""
    tally, found = Counter[str](), defaultdict[str, list[tuple[int, str]]](list)
    # Nothing that was imported is looked at again, which takes longer than a schedule.
    gc.collect()
    gc.freeze()
    for seed, invariant, what in broken_schedules(range(_SCHEDULES), tally):
        found[invariant].append((seed, what))
    gc.unfreeze()
    assert tally.keys() >= _CONTAINS
    return found


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_under_each_schedule(broken: dict[str, list[tuple[int, str]]], invariant: str) -> None:
    if seeds := broken[invariant]:
        seed, what = seeds[0]
        pytest.fail(f"{len(seeds)} schedules, the first: {described(seed, invariant, what)}")
