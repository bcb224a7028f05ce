"""Retry policy of training for object storage: an outage must not cost hours of training."""

import time
from collections.abc import Callable
from typing import TypeVar

from cmcl.contract.errors import StorageUnavailable

T = TypeVar("T")

# A store that restarts, or a network that is rerouted, is back by then.
RETRY_SECONDS = 120.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0


def retry_unavailable(
    ask: Callable[[], T],
    seconds: float = RETRY_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call `ask` until the store is available, with exponential pauses.

    `ask` must be idempotent and read or write a single object: with several objects, the first could
    use up all of the time, and every retry would repeat all of them. Raises StorageUnavailable
    `seconds` after the first failure.
    """
    pause, give_up_at = _FIRST_PAUSE, None
    while True:
        try:
            return ask()
        except StorageUnavailable as error:
            give_up_at = clock() + seconds if give_up_at is None else give_up_at
            if clock() + pause > give_up_at:
                raise
            print(f"retrying in {pause:g} s: {error}", flush=True)
        sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
