"""Waiting for a store that does not answer: training has hours behind it, and a store has hiccups."""

import time
from collections.abc import Callable
from typing import TypeVar

from cmcl.contract.errors import StorageUnavailable

T = TypeVar("T")

# A store that restarts, or a network that is rerouted, is back by then.
PATIENCE_SECONDS = 120.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0


def retry_unavailable(
    ask: Callable[[], T],
    seconds: float = PATIENCE_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What `ask` answers; asked again, with growing pauses, while the store is unavailable.

    What it asks must be harmless to ask twice, and be about one object: patience that several share
    is used up by the first, and each is asked for again when the last one fails. Raises
    StorageUnavailable `seconds` after the first failure; how long an answer took before counts not.
    """
    pause, give_up_at = _FIRST_PAUSE, None
    while True:
        try:
            return ask()
        except StorageUnavailable as error:
            give_up_at = clock() + seconds if give_up_at is None else give_up_at
            if clock() + pause > give_up_at:
                raise
            print(f"asked again in {pause:g} s: {error}", flush=True)
        sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
