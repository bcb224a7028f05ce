"""Waiting for a store that does not answer: training has hours behind it, and a store has hiccups."""

import time
from collections.abc import Callable
from typing import TypeVar

from workers.contract.errors import StorageUnavailable

T = TypeVar("T")

# A store that restarts, or a network that is rerouted, is back by then.
PATIENCE_SECONDS = 120.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0


def patiently(ask: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """What `ask` answers; asked again, with growing pauses, while the store is unavailable.

    What it asks must be harmless to ask twice. Raises StorageUnavailable after `seconds`.
    """
    give_up_at, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while True:
        try:
            return ask()
        except StorageUnavailable as error:
            if time.monotonic() + pause > give_up_at:
                raise
            print(f"asked again in {pause:g} s: {error}", flush=True)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
