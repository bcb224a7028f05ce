"""Wakes the reconciler for a model: what just happened to it in this process is carried on at once.

Only for speed. A ring that is missed, or meant for another service, is made good by the next round.
"""

import threading

# No name of a model.
EVERYBODY = "*"


class Bell:
    """Rung by anybody, waited for by one."""

    def __init__(self) -> None:
        self._rung = threading.Event()
        self._models: set[str] = set()
        self._lock = threading.Lock()

    def ring(self, model: str = EVERYBODY) -> None:
        """There may be something to do, for that model or for any."""
        with self._lock:
            self._models.add(model)
            self._rung.set()

    def wait(self, seconds: float) -> frozenset[str]:
        """For which models it rang since the last wait; none if it did not for so many seconds."""
        self._rung.wait(seconds)
        with self._lock:
            self._rung.clear()
            rung, self._models = frozenset(self._models), set()
        return rung
