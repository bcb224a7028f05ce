"""The queue of the pool: owners in turns, one attempt at a time, with failures of its ranks."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from cmcl.contract.job import AttemptOutcome
from workers.train.queue import (
    ATTEMPTS_PER_GROUP,
    FORGIVEN_AFTER_SECONDS,
    RESTARTS,
    Assignment,
    Attempt,
    AttemptQueue,
    AttemptStatus,
    Retire,
)

FIRST, SECOND, THIRD = (Attempt("file:///store", f"job-{number}", 1) for number in (1, 2, 3))


class Queue(AttemptQueue):
    """A queue whose attempts are wanted, or wanted no longer, one by one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self.wanted: dict[Attempt, str] = {}

    def join(self, attempt: Attempt, owner: str = "default") -> None:
        self.wanted[attempt] = owner
        self.want(self.wanted)

    def leave(self, attempt: Attempt) -> None:
        del self.wanted[attempt]
        self.want(self.wanted)


@pytest.fixture
def queue() -> Queue:
    queue = Queue()
    queue.group_started()
    return queue


def join(queue: Queue, *attempts: Attempt) -> list[AttemptStatus]:
    """Join in this order; the status of each at once."""
    for attempt in attempts:
        queue.join(attempt)
    return [queue.status(attempt) for attempt in attempts]


SUCCEEDED = AttemptOutcome(state="succeeded")


def failed(message: str) -> AttemptOutcome:
    return AttemptOutcome(state="failed", message=message)


SUPERSEDED = failed("a later attempt of this job has started")


def test_attempts_are_worked_on_in_order_of_arrival(queue: Queue) -> None:
    assert join(queue, FIRST, SECOND) == ["running", "waiting"]
    assert queue.next(after=0) == Assignment(1, FIRST)
    assert queue.next(after=1) is None, "a rank that is done first waits for the others"
    queue.attempt_succeeded(1)
    assert queue.status(SECOND) == "running"
    assert queue.next(after=1) == Assignment(2, SECOND)
    assert queue.status(FIRST) == SUCCEEDED


def test_an_attempt_that_is_next_starts_until_there_are_ranks() -> None:
    queue = Queue()
    assert join(queue, FIRST, SECOND) == ["starting", "waiting"]
    queue.group_started()
    assert queue.status(FIRST) == "running"
    queue.next(after=0)
    queue.group_failed("a node was lost")
    assert queue.status(FIRST) == "starting"


def test_owners_take_turns_and_each_is_served_in_order_of_arrival(queue: Queue) -> None:
    first, second, third, other = (replace(FIRST, job=name) for name in ("a1", "a2", "a3", "b1"))
    queue.join(FIRST, "b")
    queue.next(after=0)
    for attempt in (first, second, third):
        queue.join(attempt, "a")
    queue.join(other, "b")
    assert queue.status(FIRST) == "running", "what is in work is finished"
    assert _trained(queue, 4) == [first, other, second, third]


def test_a_desk_with_one_owner_always_in_line_serves_another_after_at_most_one(
    queue: Queue,
) -> None:
    """However many attempts the first owner has in line."""
    for number in range(1_000):
        queue.join(replace(FIRST, job=f"a{number}"), "a")
        if number % 100 == 50:
            queue.join(replace(FIRST, job=f"b{number}"), "b")
            assert any(attempt.job == f"b{number}" for attempt in _trained(queue, 2))
        else:
            _trained(queue, 1)


def _trained(queue: Queue, number: int) -> list[Attempt]:
    """End what is in training, and train so many attempts to their end."""
    trained: list[Attempt] = []
    while len(trained) < number:
        found = queue.next(after=0)
        assert isinstance(found, (Assignment, Retire))
        if isinstance(found, Retire):
            queue.group_started()
            continue
        if found.attempt != FIRST:
            trained.append(found.attempt)
        queue.attempt_succeeded(found.number)
    return trained


def test_the_next_in_the_queue_is_notified(queue: Queue) -> None:
    join(queue, THIRD)
    queue.next(after=0)
    queue.join(FIRST, "b")
    queue.join(SECOND, "a")
    queue.attempt_succeeded(1)
    assert [queue.status(each) for each in (FIRST, SECOND)] == ["running", "waiting"]


def test_every_rank_gets_the_same_assignment(queue: Queue) -> None:
    join(queue, FIRST)
    assert queue.next(after=0) == queue.next(after=0) == Assignment(1, FIRST)


def test_attempts_that_are_wanted_no_longer_leave_and_new_ones_join(queue: Queue) -> None:
    queue.want({FIRST: "a", SECOND: "b"})
    queue.next(after=0)
    queue.attempt_succeeded(1)
    queue.want({FIRST: "a", SECOND: "b"})
    assert queue.status(FIRST) == SUCCEEDED, "an outcome stays for as long as it is wanted"
    queue.want({SECOND: "b", THIRD: "a"})
    assert queue.next(after=1) == Assignment(2, SECOND)
    queue.want({})
    assert queue.is_abandoned()


def test_a_superseded_attempt_that_is_still_wanted_stays_failed(queue: Queue) -> None:
    again = replace(FIRST, attempt=2)
    queue.want({FIRST: "a"})
    for _ in range(3):
        queue.want({FIRST: "a", again: "a"})
        assert [queue.status(each) for each in (FIRST, again)] == [SUPERSEDED, "running"]


def replace_group(queue: Queue) -> None:
    """The ranks fail and are replaced."""
    queue.group_failed("SIGKILL")
    queue.group_started()


def test_attempt_that_ranks_die_of_fails_with_their_last_words(queue: Queue) -> None:
    join(queue, FIRST)
    queue.next(after=0)
    queue.attempt_error(1, "out of memory")
    for _ in range(RESTARTS):
        replace_group(queue)
        assert queue.status(FIRST) == "running"
    queue.group_failed("SIGKILL")
    assert queue.status(FIRST) == failed("the ranks failed 3 times: out of memory")


def test_a_growing_group_has_not_died(queue: Queue) -> None:
    join(queue, FIRST)
    queue.next(after=0)
    for _ in range(3 * RESTARTS):
        queue.group_started()
        assert queue.next(after=0) == Assignment(1, FIRST)
    for _ in range(RESTARTS):
        replace_group(queue)
    assert queue.status(FIRST) == "running"


@pytest.mark.parametrize("started", [False, True])
def test_ranks_that_die_with_nothing_in_work_are_counted_for_the_waiting_attempt(
    started: bool,
) -> None:
    """Before they have started, or afterwards."""
    queue = Queue()
    assert join(queue, FIRST, SECOND) == ["starting", "waiting"]
    for _ in range(RESTARTS + 1):
        assert not isinstance(queue.status(FIRST), AttemptOutcome)
        if started:
            queue.group_started()
        queue.group_failed("no GPU answers")
    assert queue.status(FIRST) == failed("the ranks failed 3 times: no GPU answers")
    assert queue.status(SECOND) == "starting"
    queue.group_started()
    assert queue.next(after=0) == Assignment(2, SECOND)


def test_ranks_lost_to_a_rejected_attempt_are_charged_to_no_attempt(queue: Queue) -> None:
    join(queue, FIRST)
    queue.next(after=0)
    queue.attempt_failed(1, "NaN in column b")
    join(queue, SECOND)
    replace_group(queue)
    assert queue.next(after=0) == Assignment(2, SECOND)
    for _ in range(RESTARTS):
        replace_group(queue)
    assert queue.status(SECOND) == "running"
    queue.group_failed("SIGKILL")
    assert isinstance(queue.status(SECOND), AttemptOutcome)


def test_ranks_lost_to_an_abandoned_attempt_are_charged_to_no_attempt(queue: Queue) -> None:
    join(queue, FIRST, SECOND)
    queue.next(after=0)
    queue.leave(FIRST)
    replace_group(queue)
    assert queue.next(after=0) == Assignment(2, SECOND)
    for _ in range(RESTARTS):
        replace_group(queue)
    assert queue.status(SECOND) == "running"


def test_deaths_are_counted_separately_for_each_attempt(queue: Queue) -> None:
    for number, attempt in enumerate((FIRST, SECOND), start=1):
        join(queue, attempt)
        queue.next(after=0)
        for _ in range(RESTARTS):
            replace_group(queue)
        queue.attempt_succeeded(number)
        assert queue.status(attempt) == SUCCEEDED


def test_deaths_are_forgiven_to_groups_that_worked_for_long() -> None:
    now = 0.0
    queue = Queue(lambda: now)
    queue.group_started()
    join(queue, FIRST)
    queue.next(after=0)
    for _ in range(3 * RESTARTS):
        now += FORGIVEN_AFTER_SECONDS
        replace_group(queue)
        assert queue.status(FIRST) == "running"
    for _ in range(RESTARTS):
        now += 1
        replace_group(queue)
    assert isinstance(queue.status(FIRST), AttemptOutcome)


def test_attempt_that_has_left_is_abandoned(queue: Queue) -> None:
    join(queue, FIRST)
    queue.next(after=0)
    assert not queue.is_abandoned()
    queue.leave(FIRST)
    assert queue.is_abandoned()
    queue.group_started()
    assert not queue.is_abandoned()
    assert queue.next(after=0) is None


def test_abandoned_attempt_that_ends_in_time_makes_room(queue: Queue) -> None:
    join(queue, FIRST, SECOND)
    queue.next(after=0)
    queue.leave(FIRST)
    queue.attempt_succeeded(1)
    assert not queue.is_abandoned()
    assert queue.next(after=1) == Assignment(2, SECOND)


def test_attempts_that_have_left_are_not_trained(queue: Queue) -> None:
    join(queue, FIRST, SECOND, THIRD)
    queue.next(after=0)
    queue.leave(SECOND)
    queue.attempt_succeeded(1)
    assert queue.next(after=1) == Assignment(2, THIRD)


def test_next_attempt_of_a_job_ends_the_one_before(queue: Queue) -> None:
    join(queue, FIRST, SECOND)
    queue.next(after=0)
    again = replace(FIRST, attempt=2)
    assert join(queue, again) == ["waiting"]
    assert queue.status(FIRST) == SUPERSEDED
    assert queue.is_abandoned()
    queue.group_started()
    assert queue.next(after=0) == Assignment(2, SECOND)


def test_status_of_an_earlier_assignment_changes_nothing(queue: Queue) -> None:
    join(queue, FIRST, SECOND)
    queue.next(after=0)
    queue.attempt_succeeded(1)
    queue.next(after=1)
    queue.attempt_failed(1, "late")
    queue.attempt_succeeded(1)
    assert queue.status(SECOND) == "running"


def test_ranks_retire_after_so_many_attempts_and_new_ones_take_over(queue: Queue) -> None:
    for number in range(1, ATTEMPTS_PER_GROUP + 1):
        join(queue, FIRST)
        assert queue.next(after=number - 1) == Assignment(number, FIRST)
        queue.attempt_succeeded(number)
        queue.leave(FIRST)
    join(queue, SECOND)
    assert queue.next(after=ATTEMPTS_PER_GROUP) == Retire()
    queue.group_started()
    assert queue.next(after=0) == Assignment(ATTEMPTS_PER_GROUP + 1, SECOND)


def test_new_ranks_that_die_at_their_start_after_others_retired_are_counted(
    queue: Queue,
) -> None:
    for number in range(1, ATTEMPTS_PER_GROUP + 1):
        join(queue, FIRST)
        queue.next(after=number - 1)
        queue.attempt_succeeded(number)
        queue.leave(FIRST)
    join(queue, SECOND)
    assert queue.next(after=ATTEMPTS_PER_GROUP) == Retire()
    for _ in range(RESTARTS + 1):
        assert not isinstance(queue.status(SECOND), AttemptOutcome)
        queue.group_failed("no GPU answers")
    assert isinstance(queue.status(SECOND), AttemptOutcome)
