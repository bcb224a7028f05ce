"""The queue of attempts for the one group of ranks. Plain Python, single-threaded.

An attempt stays in the queue for as long as the driver wants it. When its request disappears, the attempt leaves the
queue, and a group that trains it must be ended.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

# How often a group may fail during an attempt and start it again.
RESTARTS = 2
# A group that trained this long before it failed has made progress, by its checkpoints. On nodes that
# come and go a long attempt may lose many groups without being the cause.
FORGIVEN_AFTER_SECONDS = 600.0
# Ranks are replaced after this many attempts, which bounds any growth of their memory.
ATTEMPTS_PER_GROUP = 100

_SUPERSEDED = "a later attempt of this job has started"
_STARTING = "the training ranks are starting"


@dataclass(frozen=True)
class Attempt:
    """Which attempt: the arguments of `train_dataset`, without the device."""

    store_uri: str
    job: str
    attempt: int


@dataclass(frozen=True)
class Assignment:
    """An attempt for the ranks to train. Numbers increase."""

    number: int
    attempt: Attempt


@dataclass(frozen=True)
class _Waiting:
    """An attempt in the queue, and the owner of its job."""

    attempt: Attempt
    owner: str


@dataclass(frozen=True)
class Retire:
    """The ranks have trained enough attempts and are to be replaced."""


@dataclass(frozen=True)
class AttemptStatus:
    """State of an attempt.

    waiting    others are before it
    working    it is next, or in training; `message`: why not yet
    done       its candidate is complete
    failed     it has none; `message` is the reason
    """

    state: Literal["waiting", "working", "done", "failed"]
    message: str = ""

    @property
    def is_final(self) -> bool:
        """Whether the state is final."""
        return self.state in ("done", "failed")


class JobQueue:
    """One attempt in training, the others waiting: owners in turns, and in order of arrival within each.

    The control plane has ordered jobs by priority before it submits them. A running attempt is never preempted: it would
    have to go back to its last checkpoint, and the ranks to be restarted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wanted: set[Attempt] = set()
        self._waiting: list[_Waiting] = []
        # Number of the newest assignment of each owner.
        self._served: dict[str, int] = {}
        self._outcomes: dict[Attempt, AttemptStatus] = {}
        self._current: Assignment | None = None
        self._number = self._first_of_group = 0
        self._failures = 0
        self._began = 0.0
        self._error = ""
        self._has_group = self._is_ending_regularly = False

    def want(self, wanted: Mapping[Attempt, str]) -> bool:
        """Add attempts that are new, and remove those that are wanted no longer. Returns whether there were any.

        `wanted`: owners of their jobs.
        """
        gone = self._wanted - wanted.keys()
        new = [attempt for attempt in wanted if attempt not in self._wanted]
        for attempt in gone:
            self.leave(attempt)
        for attempt in new:
            self.join(attempt, wanted[attempt])
        return bool(gone or new)

    def join(self, attempt: Attempt, owner: str = "default") -> None:
        """Add an attempt. It supersedes earlier attempts of that job."""
        others = [each for each in self._wanted if _job(each) == _job(attempt)]
        for earlier in [each for each in others if each.attempt < attempt.attempt]:
            self.leave(earlier)
        self._wanted.add(attempt)
        if any(each.attempt > attempt.attempt for each in others):
            self._outcomes[attempt] = AttemptStatus("failed", _SUPERSEDED)
        elif not self._is_current(attempt) and not self._is_waiting(attempt):
            self._waiting.append(_Waiting(attempt, owner))

    def leave(self, attempt: Attempt) -> None:
        """Remove an attempt, with or without an outcome."""
        self._wanted.discard(attempt)
        self._outcomes.pop(attempt, None)
        self._waiting = [each for each in self._waiting if each.attempt != attempt]

    def status(self, attempt: Attempt) -> AttemptStatus:
        """Status of an attempt that has joined; a superseded one has failed."""
        if attempt in self._outcomes:
            return self._outcomes[attempt]
        if attempt not in self._wanted:
            return AttemptStatus("failed", _SUPERSEDED)
        first = self._first()
        is_next = self._current is None and first is not None and first.attempt == attempt
        return AttemptStatus(
            "working" if is_next or self._is_current(attempt) else "waiting",
            "" if self._has_group else _STARTING,
        )

    @property
    def has_group(self) -> bool:
        """Whether there are ranks."""
        return self._has_group

    def group_started(self) -> None:
        """All new ranks are there and the old ones have ended. The current attempt starts again.

        This alone is no failure: a group is also restarted to change its size.
        """
        self._has_group, self._began = True, self._clock()
        self._is_ending_regularly = False
        self._drop_abandoned()
        in_training = self._current is not None
        self._first_of_group = self._number - in_training

    def group_failed(self, error: str) -> None:
        """The ranks ended with an error and are replaced. `error`: the cluster's message.

        It counts against the attempt in training, else against the first in the queue, which might
        never get ranks otherwise. It does not count if the ranks ended because an attempt failed or was
        abandoned.
        """
        is_expected = self._is_ending_regularly or self.is_abandoned()
        had_started, self._has_group, self._is_ending_regularly = self._has_group, False, False
        self._drop_abandoned()
        if is_expected:
            return
        if self._current is None:
            self._take()
        if self._current is not None:
            worked = self._clock() - self._began if had_started else 0.0
            self._count_failure(worked, error)

    def next(self, after: int) -> Assignment | Retire | None:
        """The next assignment for a rank that has completed number `after`; None: nothing yet."""
        is_worn = self._number - self._first_of_group >= ATTEMPTS_PER_GROUP
        if self._current is None and not is_worn:
            self._take()
        if self._current is not None and self._current.number > after:
            return self._current
        return Retire() if is_worn else None

    def attempt_done(self, number: int) -> None:
        """The candidate of that assignment is complete."""
        if self._current is not None and self._current.number == number:
            self._end(AttemptStatus("done"))

    def attempt_failed(self, number: int, message: str) -> None:
        """It would fail again in the same way. Its ranks end with that error and are replaced."""
        if self._current is not None and self._current.number == number:
            self._end(AttemptStatus("failed", message))
            self._is_ending_regularly = True

    def attempt_error(self, number: int, message: str) -> None:
        """A rank ended with an error that a restart may not meet again."""
        if self._current is not None and self._current.number == number:
            self._error = message

    def is_abandoned(self) -> bool:
        """Whether the attempt in training is no longer wanted."""
        return self._current is not None and self._current.attempt not in self._wanted

    def _drop_abandoned(self) -> None:
        if self.is_abandoned():
            self._end(AttemptStatus("failed", "it was stopped"))

    def _count_failure(self, seconds_worked: float, error: str) -> None:
        if seconds_worked >= FORGIVEN_AFTER_SECONDS:
            self._failures = 0
        self._failures += 1
        if self._failures > RESTARTS:
            message = f"the ranks failed {self._failures} times: {self._error or error}"
            self._end(AttemptStatus("failed", message))

    def _first(self) -> _Waiting | None:
        """The attempt that is next: of the owner that was served least recently."""
        return min(self._waiting, key=lambda each: self._served.get(each.owner, 0), default=None)

    def _take(self) -> None:
        first = self._first()
        if first is None:
            return
        self._waiting.remove(first)
        self._number += 1
        self._served[first.owner] = self._number
        self._failures, self._began, self._error = 0, self._clock(), ""
        self._current = Assignment(self._number, first.attempt)

    def _end(self, status: AttemptStatus) -> None:
        if self._current is not None and self._current.attempt in self._wanted:
            self._outcomes[self._current.attempt] = status
        self._current = None

    def _is_current(self, attempt: Attempt) -> bool:
        return self._current is not None and self._current.attempt == attempt

    def _is_waiting(self, attempt: Attempt) -> bool:
        return any(each.attempt == attempt for each in self._waiting)


def _job(attempt: Attempt) -> tuple[str, str]:
    return attempt.store_uri, attempt.job
