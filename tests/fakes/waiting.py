"""Wait for what another thread or process does."""

import time
from collections.abc import Callable

_SECONDS = 60.0


def until(holds: Callable[[], bool]) -> None:
    """Return once `holds()`; fail after a minute."""
    deadline = time.monotonic() + _SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
