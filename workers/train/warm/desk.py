"""Where attempts stand in line for the one group of warm ranks. Plain Python, all in one thread.

An attempt is wanted for as long as its job is there. When the job goes, for whatever reason, the
attempt leaves the line, and a group that works on it is to be ended.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from cmcl.contract.priority import Priority

# Where an attempt stands in line, the last first. One that is in work is finished whatever comes: it
# would have to go back to its last checkpoint, and the ranks to be started anew.
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
# How often a group may die over one attempt and begin it again.
RESTARTS = 2
# A group that worked so long before it died has come further, by its checkpoints. On nodes that
# come and go a long attempt may lose many groups, and none of them is its fault.
FORGIVEN_AFTER_SECONDS = 600.0
# Ranks are replaced after so many attempts, whatever they may have gathered in their memory.
ATTEMPTS_PER_GROUP = 100


@dataclass(frozen=True)
class Attempt:
    """Which attempt: the arguments of `train_dataset`, without the device."""

    store_uri: str
    job: str
    attempt: int


@dataclass(frozen=True)
class Assignment:
    """An attempt that the ranks are to work on. Numbers only grow."""

    number: int
    attempt: Attempt


@dataclass(frozen=True)
class _Waiting:
    """An attempt in line, and how much it is wanted."""

    attempt: Attempt
    priority: Priority


@dataclass(frozen=True)
class Retire:
    """The ranks have learned enough: let them be replaced."""


@dataclass(frozen=True)
class Answer:
    """What became of an attempt so far.

    waiting    others are before it
    working    it is the next or being worked on
    done       its candidate is complete
    failed     it has none, and `words` say why
    elsewhere  this group is of another kind or about to end, as `words` say; it makes room
    """

    state: Literal["waiting", "working", "done", "failed", "elsewhere"]
    words: str = ""

    @property
    def is_final(self) -> bool:
        """Nothing more will be said of it."""
        return self.state in ("done", "failed", "elsewhere")


class Desk:
    """One attempt in work, the others in line: by priority, then in order of arrival."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wanted: set[Attempt] = set()
        self._line: list[_Waiting] = []
        self._outcomes: dict[Attempt, Answer] = {}
        self._current: Assignment | None = None
        self._number = self._first_of_group = 0
        self._deaths = 0
        self._began = 0.0
        self._words = ""
        self._has_group = self._ends_as_it_should = False
        self._idle_since = clock()

    @property
    def idle_seconds(self) -> float:
        """How long nothing has been wanted."""
        return self._clock() - self._idle_since if self.is_empty else 0.0

    @property
    def is_empty(self) -> bool:
        """Nobody waits, and nothing is worked on."""
        return self._current is None and not self._line

    def join(self, attempt: Attempt, priority: Priority = "normal") -> None:
        """Its job has come. A job has a next attempt only if nobody wants the ones before it."""
        others = [each for each in self._wanted if _job(each) == _job(attempt)]
        for earlier in [each for each in others if each.attempt < attempt.attempt]:
            self.leave(earlier)
        self._wanted.add(attempt)
        if any(each.attempt > attempt.attempt for each in others):
            self._outcomes[attempt] = Answer("failed", "a later attempt of this job has begun")
        elif not self._is_in_work(attempt) and not self._is_in_line(attempt):
            self._line.append(_Waiting(attempt, priority))
            # It is a stable sort: among equals, who came first stays first.
            self._line.sort(key=lambda each: -PRIORITIES.index(each.priority))

    def leave(self, attempt: Attempt) -> None:
        """Its job has gone, with or without an answer."""
        self._idle_since = self._clock()
        self._wanted.discard(attempt)
        self._outcomes.pop(attempt, None)
        self._line = [each for each in self._line if each.attempt != attempt]

    def answer(self, attempt: Attempt) -> Answer:
        """What became of an attempt that has joined; one that had to leave has failed."""
        if attempt in self._outcomes:
            return self._outcomes[attempt]
        if attempt not in self._wanted:
            return Answer("failed", "a later attempt of this job has begun")
        is_next = self._current is None and [each.attempt for each in self._line[:1]] == [attempt]
        return Answer("working" if is_next or self._is_in_work(attempt) else "waiting")

    def group_started(self) -> None:
        """All new ranks are there, and the ones before them have ended; they begin again.

        That alone is no death: a group is also started anew to become larger.
        """
        self._has_group, self._began = True, self._clock()
        self._ends_as_it_should = False
        self._drop_abandoned()
        in_work = self._current is not None
        self._first_of_group = self._number - in_work

    def group_died(self, words: str) -> None:
        """Its ranks ended with an error, and are replaced. `words`: the cluster's own.

        Counted for the attempt in work, else for the one which waits for the next ranks: they may
        never come to it. Ranks that end over what was refused or abandoned are nobody's deaths.
        """
        is_nobodys = self._ends_as_it_should or self.is_abandoned()
        had_started, self._has_group, self._ends_as_it_should = self._has_group, False, False
        self._drop_abandoned()
        if is_nobodys:
            return
        if self._current is None:
            self._take()
        if self._current is not None:
            worked = self._clock() - self._began if had_started else 0.0
            self._count_death(worked, words)

    def next(self, after: int) -> Assignment | Retire | None:
        """What a rank that has done number `after` is to do; None: nothing yet."""
        is_worn = self._number - self._first_of_group >= ATTEMPTS_PER_GROUP
        if self._current is None and not is_worn:
            self._take()
        if self._current is not None and self._current.number > after:
            return self._current
        return Retire() if is_worn else None

    def finished(self, number: int) -> None:
        """The candidate of that assignment is complete."""
        if self._current is not None and self._current.number == number:
            self._end(Answer("done"))

    def refused(self, number: int, words: str) -> None:
        """It would fail alike again. Its ranks end with that, and are replaced."""
        if self._current is not None and self._current.number == number:
            self._end(Answer("failed", words))
            self._ends_as_it_should = True

    def stumbled(self, number: int, words: str) -> None:
        """A rank ended with an error that another go may not meet."""
        if self._current is not None and self._current.number == number:
            self._words = words

    def is_abandoned(self) -> bool:
        """Whether the ranks work on what nobody wants."""
        return self._current is not None and self._current.attempt not in self._wanted

    def _drop_abandoned(self) -> None:
        if self.is_abandoned():
            self._end(Answer("failed", "nobody wants it"))

    def _count_death(self, seconds_worked: float, words: str) -> None:
        if seconds_worked >= FORGIVEN_AFTER_SECONDS:
            self._deaths = 0
        self._deaths += 1
        if self._deaths > RESTARTS:
            words = f"the ranks died {self._deaths} times: {self._words or words}"
            self._end(Answer("failed", words))

    def _take(self) -> None:
        if not self._line:
            return
        self._number += 1
        self._deaths, self._began, self._words = 0, self._clock(), ""
        self._current = Assignment(self._number, self._line.pop(0).attempt)

    def _end(self, answer: Answer) -> None:
        if self._current is not None and self._current.attempt in self._wanted:
            self._outcomes[self._current.attempt] = answer
        self._current, self._idle_since = None, self._clock()

    def _is_in_work(self, attempt: Attempt) -> bool:
        return self._current is not None and self._current.attempt == attempt

    def _is_in_line(self, attempt: Attempt) -> bool:
        return any(each.attempt == attempt for each in self._line)


def _job(attempt: Attempt) -> tuple[str, str]:
    return attempt.store_uri, attempt.job
