"""Background loops of the process: one base class, with a heartbeat that the probes and the metrics read."""

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from cmcl.memory import trim_heap
from service.core.clock import Seconds

logger = logging.getLogger(__name__)

# Longer than a round of any loop takes while its thread makes progress. Only a restart helps then.
HUNG_SECONDS = 1800.0


class Loop(ABC):
    """Work that a thread does until the process stops, with a heartbeat.

    `name` names the thread, the check of /readyz and the label of the metric. A loop without a heartbeat for
    `stale_seconds` is reported by /readyz, and by /healthz after `HUNG_SECONDS`: its thread hangs, or is gone.
    """

    name: ClassVar[str]
    stale_seconds: ClassVar[float] = 300.0

    def __init__(self, seconds: Seconds = time.monotonic) -> None:
        self._seconds = seconds
        self._beat_at = seconds()
        # Why a thread of it has ended before the process stops, for /readyz and /healthz. Only a restart helps.
        self.ended: str | None = None

    def work(self, stop: threading.Event) -> None:
        """Run in this thread, and note why it ends before `stop` is set."""
        with self._noting_end():
            self.run(stop)
            assert stop.is_set(), "a loop returned"

    @contextmanager
    def _noting_end(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.ended = f"a thread has ended: {error!r}"
            logger.critical("a thread of loop %s has ended", self.name, exc_info=error)
            raise

    @abstractmethod
    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. No exception may end it: its work would stop for the life of the process."""

    def beat(self) -> None:
        self._beat_at = self._seconds()

    def release(self) -> None:  # noqa: B027
        """Release what other instances wait for, when the process stops. Raises DatabaseError."""

    def age(self) -> float:
        """Seconds since the last heartbeat, for the metrics; infinite once a thread has ended."""
        return math.inf if self.ended else self._seconds() - self._beat_at

    def problem(self) -> str | None:
        """Why this loop is not ready, for /readyz; None if it is."""
        return self._silence(self.stale_seconds)

    def hung(self) -> str | None:
        """What hangs, for /healthz; None if nothing does."""
        return self._silence(HUNG_SECONDS)

    def _silence(self, permitted: float) -> str | None:
        age = self.age()
        return f"no round has ended for {age:.0f} s" if age > permitted else None


class PeriodicLoop(Loop):
    """A loop of rounds with a pause after each. A long round may call `beat` as well.

    `outages`: errors that end a round while something else is unavailable, logged once below `outage_message`.
    """

    outages: ClassVar[tuple[type[Exception], ...]] = ()
    outage_message: ClassVar[str] = ""
    pause_seconds: ClassVar[float]
    # Whether the first round comes before the first pause.
    starts_at_once: ClassVar[bool] = False

    def __init__(self, seconds: Seconds = time.monotonic) -> None:
        super().__init__(seconds)
        own_logger = logging.getLogger(type(self).__module__)
        self._outage_of_rounds = OutageLog(own_logger, self.outage_message)

    def run(self, stop: threading.Event) -> None:
        self.beat()
        pause = 0.0 if self.starts_at_once else self.pause_seconds
        while not stop.wait(pause):
            try:
                pause = self.step(stop)
                self._outage_of_rounds.recovered()
            except Exception as error:  # noqa: BLE001
                pause = self.pause_seconds
                self._try_to_report(error)
            self.beat()

    @abstractmethod
    def step(self, stop: threading.Event) -> float:
        """Run one round and return the seconds until the next one."""

    def _try_to_report(self, error: Exception) -> None:
        try:
            self.report(error)
        except Exception:
            logger.exception("a failed round of %s could not be reported; will retry", self.name)

    def report(self, error: Exception) -> None:
        """Log an exception that ended a round."""
        if isinstance(error, self.outages):
            self._outage_of_rounds.failed(error)
        else:
            logger.error("a round of %s failed; will retry", self.name, exc_info=error)


class MemoryReleaser(PeriodicLoop):
    """Returns the freed part of the heap to the system."""

    name = "memory"
    pause_seconds = 20.0

    def step(self, stop: threading.Event) -> float:
        trim_heap()
        return self.pause_seconds


class OutageLog:
    """Logs a warning when the error changes: an outage of an hour is one line and not thousands."""

    def __init__(self, target: logging.Logger, message: str) -> None:
        self._logger = target
        self._message = message
        self._last = ""

    def failed(self, error: Exception) -> None:
        """Log the error, unless it was the last one logged."""
        if str(error) != self._last:
            self._last = str(error)
            self._logger.warning("%s: %s", self._message, error)

    def recovered(self) -> None:
        """Log the next error of any kind."""
        self._last = ""
