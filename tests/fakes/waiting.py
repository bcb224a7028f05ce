"""Wait for what another thread or process does."""

import time
from collections.abc import Callable


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return once `holds()`; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
