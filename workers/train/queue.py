"""The queue of attempts for the one group of ranks of a pool. Plain Python, single-threaded.

An attempt stays in the queue for as long as the driver wants it. When its request disappears, the attempt leaves the
queue, and a group that trains it must be ended.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from cmcl.contract.job import AttemptOutcome

# How often a group may fail during an attempt and start it again.
RESTARTS = 2
# A group that trained this long before it failed has made progress, by its checkpoints. On nodes that
# come and go a long attempt may lose many groups without being the cause.
FORGIVEN_AFTER_SECONDS = 600.0
# Ranks are replaced after this many attempts, which bounds any growth of their memory.
ATTEMPTS_PER_GROUP = 100

_SUPERSEDED = AttemptOutcome(state="failed", message="a later attempt of this job has started")

AttemptStatus = Literal["waiting", "starting", "running"] | AttemptOutcome
"""waiting: others are before it. starting: it is next, and has no ranks yet. running: it is next, or in training."""


@dataclass(frozen=True)
class Attempt:
    """Which attempt: the arguments of `train_dataset`, without the device."""

    store_uri: str
    job: str
    attempt: int

    def is_later_than(self, other: "Attempt") -> bool:
        """Whether both are attempts of one job, and this one supersedes the other."""
        is_same_job = (self.store_uri, self.job) == (other.store_uri, other.job)
        return is_same_job and self.attempt > other.attempt


@dataclass(frozen=True)
class Assignment:
    """An attempt for the ranks to train. Numbers increase."""

    number: int
    attempt: Attempt


@dataclass(frozen=True)
class Retire:
    """The ranks have trained enough attempts and are to be replaced."""


class AttemptQueue:
    """One attempt in training, the others waiting: owners in turns, and in order of arrival within each.

    The control plane has ordered jobs by priority before it submits them. A running attempt is never preempted: it would
    have to go back to its last checkpoint, and the ranks to be restarted.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock, self._on_change = clock, on_change
        self._wanted: set[Attempt] = set()
        # Owners of their jobs, by attempt, in order of arrival.
        self._waiting: dict[Attempt, str] = {}
        # Number of the newest assignment of each owner.
        self._served: dict[str, int] = {}
        self._outcomes: dict[Attempt, AttemptOutcome] = {}
        self._current: Assignment | None = None
        self._number = self._first_of_group = 0
        self._failures = 0
        self._began = 0.0
        self._error = ""
        self._has_group = self._is_ending_regularly = False

    @property
    def has_group(self) -> bool:
        """Whether there are ranks."""
        return self._has_group

    # --- What the driver calls

    def want(self, wanted: Mapping[Attempt, str]) -> None:
        """Add attempts that are new, and remove those that are wanted no longer. `wanted`: owners of their jobs."""
        gone = self._wanted - wanted.keys()
        new = [attempt for attempt in wanted if attempt not in self._wanted]
        for attempt in gone:
            self._remove(attempt)
        for attempt in new:
            self._add(attempt, wanted[attempt])
        assert self._waiting.keys() <= self._wanted
        assert self._outcomes.keys() <= self._wanted
        if gone or new:
            self._on_change()

    def status(self, attempt: Attempt) -> AttemptStatus:
        """Status of an attempt that is wanted; a superseded one has failed."""
        if attempt in self._outcomes:
            return self._outcomes[attempt]
        if attempt not in self._wanted:
            return _SUPERSEDED
        is_next = self._current is None and self._next_waiting() == attempt
        if not is_next and not self._is_current(attempt):
            return "waiting"
        return "running" if self._has_group else "starting"

    # --- What ranks and their controller call

    def group_started(self) -> None:
        """All new ranks are there and the old ones have ended. The current attempt starts again.

        This alone is no failure: a group is also restarted to change its size.
        """
        self._has_group, self._began = True, self._clock()
        self._is_ending_regularly = False
        self._drop_abandoned()
        in_training = self._current is not None
        self._first_of_group = self._number - in_training
        assert self._first_of_group >= 0
        self._on_change()

    def group_failed(self, error: str) -> None:
        """The ranks ended with an error and are replaced. `error`: the cluster's message.

        It counts against the attempt in training, else against the first in the queue, which might
        never get ranks otherwise. It does not count if the ranks ended because an attempt failed or was
        abandoned.
        """
        is_expected = self._is_ending_regularly or self.is_abandoned()
        had_started, self._has_group, self._is_ending_regularly = self._has_group, False, False
        self._drop_abandoned()
        if not is_expected:
            if self._current is None:
                self._assign_next()
            if self._current is not None:
                self._count_failure(self._clock() - self._began if had_started else 0.0, error)
        self._on_change()

    def next(self, after: int) -> Assignment | Retire | None:
        """The next assignment for a rank that has completed number `after`; None: nothing yet."""
        assert 0 <= after <= self._number, "a rank has completed what was not assigned"
        is_worn = self._number - self._first_of_group >= ATTEMPTS_PER_GROUP
        if self._current is None and not is_worn:
            self._assign_next()
        if self._current is not None and self._current.number > after:
            return self._current
        return Retire() if is_worn else None

    def attempt_succeeded(self, number: int) -> None:
        """The candidate of that assignment is complete."""
        if self._is_number(number):
            self._end(AttemptOutcome(state="succeeded"))

    def attempt_failed(self, number: int, message: str) -> None:
        """It would fail again in the same way. Its ranks end with that error and are replaced."""
        if self._is_number(number):
            self._end(AttemptOutcome(state="failed", message=message))
            self._is_ending_regularly = True

    def attempt_error(self, number: int, message: str) -> None:
        """A rank ended with an error that a restart may not meet again, and ends its group."""
        if self._is_number(number):
            self._error = message

    def is_abandoned(self) -> bool:
        """Whether the attempt in training is no longer wanted."""
        return self._current is not None and self._current.attempt not in self._wanted

    def _add(self, attempt: Attempt, owner: str) -> None:
        """Add an attempt. It supersedes earlier attempts of that job."""
        for earlier in [each for each in self._wanted if attempt.is_later_than(each)]:
            self._remove(earlier)
        is_superseded = any(each.is_later_than(attempt) for each in self._wanted)
        self._wanted.add(attempt)
        if is_superseded:
            self._outcomes[attempt] = _SUPERSEDED
        elif not self._is_current(attempt):
            assert attempt not in self._waiting, "an attempt is queued twice"
            self._waiting[attempt] = owner

    def _remove(self, attempt: Attempt) -> None:
        self._wanted.discard(attempt)
        self._outcomes.pop(attempt, None)
        self._waiting.pop(attempt, None)

    def _drop_abandoned(self) -> None:
        if self.is_abandoned():
            self._current = None

    def _count_failure(self, seconds_worked: float, error: str) -> None:
        assert self._current is not None
        assert seconds_worked >= 0
        if seconds_worked >= FORGIVEN_AFTER_SECONDS:
            self._failures = 0
        self._failures += 1
        if self._failures > RESTARTS:
            message = f"the ranks failed {self._failures} times: {self._error or error}"
            self._end(AttemptOutcome(state="failed", message=message))

    def _next_waiting(self) -> Attempt | None:
        """The first attempt of the owner that was served least recently."""
        return min(
            self._waiting, key=lambda each: self._served.get(self._waiting[each], 0), default=None
        )

    def _assign_next(self) -> None:
        assert self._current is None, "one attempt at a time"
        attempt = self._next_waiting()
        if attempt is None:
            return
        self._number += 1
        self._served[self._waiting.pop(attempt)] = self._number
        self._failures, self._began, self._error = 0, self._clock(), ""
        assert attempt in self._wanted
        self._current = Assignment(self._number, attempt)

    def _end(self, outcome: AttemptOutcome) -> None:
        assert self._current is not None
        if self._current is not None and self._current.attempt in self._wanted:
            self._outcomes[self._current.attempt] = outcome
        self._current = None
        self._on_change()

    def _is_current(self, attempt: Attempt) -> bool:
        return self._current is not None and self._current.attempt == attempt

    def _is_number(self, number: int) -> bool:
        return self._current is not None and self._current.number == number
