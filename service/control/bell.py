"""Wakes the reconciler: what just happened in this process is carried on at once.

Only for speed. A ring that is missed, or meant for another service, is made good by the next round.
"""

import threading


class Bell:
    """Rung by anybody, waited for by one."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def ring(self) -> None:
        """There may be something to do."""
        self._rung.set()

    def wait(self, seconds: float) -> None:
        """Until it rings, or has rung since the last wait; for so many seconds at most."""
        self._rung.wait(seconds)
        self._rung.clear()
