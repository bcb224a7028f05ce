"""The work queue of the reconciler, in the shape of controller-runtime's.

https://pkg.go.dev/k8s.io/client-go/util/workqueue. A key says what to look at, not what happened: the worker that processes it
reads the present state. So a key that is added several times is processed once, and one event that is missed costs time
only.
"""

import heapq
import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import NamedTuple

from service.core.clock import Seconds

_SHORTEST_BACKOFF, _LONGEST_BACKOFF = 0.2, 30.0
# A low-priority key is taken as if it had become due this much later, so that it is taken in the end. Far below the
# minute after which a key that waits makes the process not ready.
_LOW_PRIORITY_SECONDS = 10.0


class Work(StrEnum):
    """The kinds of work of a model. Keys of different kinds may be processed at the same time."""

    JOBS = "jobs"  # its pointer, and the job whose turn it is
    DATASETS = "datasets"  # jobs that are queued or being prepared
    POINTER = "pointer"  # comparing its live.json with the database, after a start; before it, all else is done


class Key(NamedTuple):
    """What is queued: one kind of work of one model."""

    model: str
    work: Work


class _Priority(IntEnum):
    """Priority of a key: the lower number is taken first where two keys are due at the same time."""

    NORMAL = 0
    LOW = 1


class Backoff:
    """Pauses after failures by name, each twice as long as the one before, from 0.2 to 30 s."""

    def __init__(self, seconds: Seconds) -> None:
        self._seconds = seconds
        self._pauses: dict[str, tuple[float, float]] = {}

    def failed(self, name: str) -> None:
        """Begin the next pause."""
        pause = self._pauses.get(name)
        seconds = _SHORTEST_BACKOFF if pause is None else min(2 * pause[1], _LONGEST_BACKOFF)
        self._pauses[name] = (self._seconds() + seconds, seconds)

    def paused_until(self, name: str) -> float:
        """Return the end of the pause, in the time of `seconds`; a time in the past without one."""
        pause = self._pauses.get(name)
        return float("-inf") if pause is None else pause[0]

    def forget(self, name: str) -> None:
        self._pauses.pop(name, None)


class WorkQueue:
    """Keys that are due now or later. All methods may be called by any thread.

    A key is processed by one worker at a time: one that is added while it is processed is due again afterwards. A key
    that failed is not due before its pause has ended, even if an event adds it, so that events do not multiply the load on
    something that fails. Low-priority keys, those that a listing of many models adds, come after those that an event adds:
    after a start or a resync there may be thousands. A key may be due with both priorities, and is processed once.
    `limits` bounds how many keys of a kind are processed at a time, `low_priority_limit` how many with low priority.
    """

    def __init__(
        self, seconds: Seconds, limits: Mapping[Work, int], low_priority_limit: int
    ) -> None:
        self._seconds = seconds
        self._limits = limits
        self._low_priority_limit = low_priority_limit
        self._backoff = Backoff(seconds)
        self._changed = threading.Condition()
        self._order = itertools.count()
        # When a key will be due. An entry of the heap with another time is obsolete.
        self._waiting: dict[tuple[Key, _Priority], float] = {}
        self._heap: list[tuple[float, _Priority, int, Key]] = []
        # Keys that are due, and since when, in the order in which they became due.
        self._ready: dict[tuple[Work, _Priority], dict[Key, float]] = {
            (work, priority): {} for work in Work for priority in _Priority
        }
        self._started: dict[Key, float] = {}
        # Which of them have low priority.
        self._low_started: set[Key] = set()
        # Keys that were added while they were processed, and when they are due.
        self._again: dict[tuple[Key, _Priority], float] = {}
        self._counts: Counter[Work] = Counter()

    def add(self, key: Key) -> None:
        """Have the key processed as soon as possible."""
        self.add_after(key, 0.0)

    def add_after(self, key: Key, seconds: float) -> None:
        """Have the key processed after `seconds`, or earlier if it is due earlier already."""
        with self._changed:
            self._add(key, self._seconds() + seconds, _Priority.NORMAL)

    def add_with_low_priority(self, key: Key, seconds: float = 0.0) -> None:
        """Have the key processed after `seconds`, behind those that events have added."""
        with self._changed:
            self._add(key, self._seconds() + seconds, _Priority.LOW)

    def retry(self, key: Key) -> None:
        """Have the key processed again after a pause that grows with its failures."""
        with self._changed:
            self._backoff.failed(_name(key))
            self._add(key, self._seconds(), _Priority.NORMAL)

    def forget(self, key: Key) -> None:
        """Forget the failures of the key: the next pause is a short one."""
        self._backoff.forget(_name(key))

    def get(self, timeout: float) -> Key | None:
        """Return the next key that is due, for the caller to process and then call `done`; None after `timeout` s."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while (key := self._take()) is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                next_due = self._heap[0][0] - self._seconds() if self._heap else left
                self._changed.wait(min(left, max(next_due, 0.001)))
            return key

    def done(self, key: Key) -> None:
        with self._changed:
            assert key in self._started, "done without having been started"
            del self._started[key]
            self._low_started.discard(key)
            self._counts[key.work] -= 1
            assert self._counts[key.work] >= 0
            assert self._low_started <= self._started.keys()
            for priority in _Priority:
                at = self._again.pop((key, priority), None)
                if at is not None:
                    self._add(key, at, priority)
            # A key of a kind whose limit was reached may be waiting.
            self._changed.notify()

    def is_busy(self, model: str) -> bool:
        """Return whether a worker processes a key of the model."""
        return any(Key(model, work) in self._started for work in Work)

    def is_full(self, work: Work) -> bool:
        """Return whether as many keys of this kind are processed as may be."""
        return self._counts[work] >= self._limits.get(work, len(self._started) + 1)

    def next_due(self) -> float | None:
        """Return the seconds until the next key is due, 0 if one is; None without any."""
        with self._changed:
            self._wake_due()
            if any(self._ready.values()):
                return 0.0
            return max(0.0, self._heap[0][0] - self._seconds()) if self._heap else None

    def depth(self) -> int:
        """Return the number of keys that are due and wait for a worker."""
        with self._changed:
            self._wake_due()
            return sum(map(len, self._ready.values()))

    def oldest_seconds(self, *but: Work) -> float:
        """Return for how long the key that waits longest for a worker has been due, except keys of some kinds."""
        with self._changed:
            self._wake_due()
            since = [
                next(iter(ready.values()))
                for (work, _), ready in self._ready.items()
                if ready and work not in but
            ]
            return self._seconds() - min(since) if since else 0.0

    def longest_running(self) -> tuple[Key, float] | None:
        """Return the key that has been processed for longest, and its seconds."""
        started = [(since, key) for key, since in self._started.copy().items()]
        if not started:
            return None
        since, key = min(started)
        return key, self._seconds() - since

    def _add(self, key: Key, at: float, priority: _Priority) -> None:
        at = max(at, self._backoff.paused_until(_name(key)))
        self._wake_due()
        times = self._again if key in self._started else self._waiting
        if self._is_ready(key, priority) or times.get((key, priority), math.inf) <= at:
            return
        times[key, priority] = at
        if times is self._waiting:
            heapq.heappush(self._heap, (at, priority, next(self._order), key))
            self._changed.notify()

    def _is_ready(self, key: Key, priority: _Priority) -> bool:
        """Return whether the key is due with this priority or a higher one."""
        return any(key in self._ready[key.work, each] for each in _Priority if each <= priority)

    def _take(self) -> Key | None:
        """Start the next key that is due, of those whose limits are not reached."""
        self._wake_due()
        heads = (
            (since + _LOW_PRIORITY_SECONDS * priority, key)
            for ready, priority in self._free()
            for key, since in itertools.islice(ready.items(), 1)
        )
        _, key = min(heads, key=lambda head: head[0], default=(0.0, None))
        if key is not None:
            self._start(key)
        return key

    def _free(self) -> list[tuple[dict[Key, float], _Priority]]:
        """Keys that are due and whose limits are not reached, with their priority."""
        is_low_full = len(self._low_started) >= self._low_priority_limit
        return [
            (ready, priority)
            for (work, priority), ready in self._ready.items()
            if not self.is_full(work) and not (priority is _Priority.LOW and is_low_full)
        ]

    def _start(self, key: Key) -> None:
        assert key not in self._started, "a key is processed by one worker at a time"
        now = self._seconds()
        priority = next(each for each in _Priority if key in self._ready[key.work, each])
        del self._ready[key.work, priority][key]
        for each in _Priority:
            # Its processing reads the present state, and returns when it is due again.
            self._waiting.pop((key, each), None)
        self._started[key] = now
        self._counts[key.work] += 1
        assert sum(self._counts.values()) == len(self._started)
        assert self._counts[key.work] <= self._limits.get(key.work, math.inf)
        if priority is _Priority.LOW:
            self._low_started.add(key)
            assert len(self._low_started) <= self._low_priority_limit

    def _wake_due(self) -> None:
        now = self._seconds()
        while self._heap and self._heap[0][0] <= now:
            at, priority, _, key = heapq.heappop(self._heap)
            if self._waiting.get((key, priority)) != at:
                continue
            del self._waiting[key, priority]
            if not self._is_ready(key, priority):
                self._ready[key.work, _Priority.LOW].pop(key, None)
                self._ready[key.work, priority][key] = at


def _name(key: Key) -> str:
    return f"{key.model}/{key.work}"
