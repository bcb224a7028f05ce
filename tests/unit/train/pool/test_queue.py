"""The queue of the pool: owners in turns, one attempt at a time, with failures of its ranks."""

from dataclasses import replace

import pytest

from workers.train.pool.queue import (
    ATTEMPTS_PER_GROUP,
    FORGIVEN_AFTER_SECONDS,
    RESTARTS,
    Assignment,
    Attempt,
    JobQueue,
    Retire,
)

FIRST, SECOND, THIRD = (Attempt("file:///store", f"job-{number}", 1) for number in (1, 2, 3))


@pytest.fixture
def queue() -> JobQueue:
    queue = JobQueue()
    queue.group_started()
    return queue


def join(queue: JobQueue, *attempts: Attempt) -> list[str]:
    """Join in this order; the state of each at once."""
    for attempt in attempts:
        queue.join(attempt)
    return [queue.status(attempt).state for attempt in attempts]


def test_attempts_are_worked_on_in_order_of_arrival(queue: JobQueue) -> None:
    assert join(queue, FIRST, SECOND) == ["working", "waiting"]
    assert queue.next(after=0) == Assignment(1, FIRST)
    assert queue.next(after=1) is None, "a rank that is done first waits for the others"
    queue.attempt_done(1)
    assert queue.status(SECOND).state == "working"
    assert queue.next(after=1) == Assignment(2, SECOND)
    assert queue.status(FIRST).state == "done"


def test_an_attempt_that_waits_for_ranks_has_a_message(queue: JobQueue) -> None:
    without = JobQueue()
    assert join(without, FIRST) == ["working"]
    assert without.status(FIRST).message == "the training ranks are starting"
    without.group_started()
    assert without.status(FIRST).message == ""
    without.next(after=0)
    without.group_failed("a node was lost")
    assert without.status(FIRST).message == "the training ranks are starting"


def test_owners_take_turns_and_each_is_served_in_order_of_arrival(queue: JobQueue) -> None:
    first, second, third, other = (replace(FIRST, job=name) for name in ("a1", "a2", "a3", "b1"))
    queue.join(FIRST, "b")
    queue.next(after=0)
    for attempt in (first, second, third):
        queue.join(attempt, "a")
    queue.join(other, "b")
    assert queue.status(FIRST).state == "working", "what is in work is finished"
    assert _trained(queue, 4) == [first, other, second, third]


def test_a_desk_with_one_owner_always_in_line_serves_another_after_at_most_one(
    queue: JobQueue,
) -> None:
    """However many attempts the first owner has in line."""
    for number in range(1_000):
        queue.join(replace(FIRST, job=f"a{number}"), "a")
        if number % 100 == 50:
            queue.join(replace(FIRST, job=f"b{number}"), "b")
            assert any(attempt.job == f"b{number}" for attempt in _trained(queue, 2))
        else:
            _trained(queue, 1)


def _trained(queue: JobQueue, number: int) -> list[Attempt]:
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
        queue.attempt_done(found.number)
    return trained


def test_the_next_in_the_queue_is_notified(queue: JobQueue) -> None:
    join(queue, THIRD)
    queue.next(after=0)
    queue.join(FIRST, "b")
    queue.join(SECOND, "a")
    queue.attempt_done(1)
    assert [queue.status(each).state for each in (FIRST, SECOND)] == ["working", "waiting"]


def test_every_rank_gets_the_same_assignment(queue: JobQueue) -> None:
    join(queue, FIRST)
    assert queue.next(after=0) == queue.next(after=0) == Assignment(1, FIRST)


def test_attempts_that_are_wanted_no_longer_leave_and_new_ones_join(queue: JobQueue) -> None:
    assert queue.want({FIRST: "a", SECOND: "b"})
    queue.next(after=0)
    assert not queue.want({FIRST: "a", SECOND: "b"}), "nothing has changed"
    queue.attempt_done(1)
    assert queue.status(FIRST).state == "done", "an outcome stays for as long as it is wanted"
    assert queue.want({SECOND: "b", THIRD: "a"})
    assert queue.next(after=1) == Assignment(2, SECOND)
    assert queue.want({})
    assert queue.is_abandoned()


def test_a_superseded_attempt_that_is_still_wanted_stays_failed(queue: JobQueue) -> None:
    again = replace(FIRST, attempt=2)
    queue.want({FIRST: "a"})
    for _ in range(3):
        queue.want({FIRST: "a", again: "a"})
        assert [queue.status(each).state for each in (FIRST, again)] == ["failed", "working"]


def test_a_rejection_is_reported_with_its_message(queue: JobQueue) -> None:
    join(queue, FIRST)
    queue.next(after=0)
    queue.attempt_failed(1, "a smaller learning rate")
    status = queue.status(FIRST)
    assert (status.state, status.message) == ("failed", "a smaller learning rate")


def replace_group(queue: JobQueue) -> None:
    """The ranks fail and are replaced."""
    queue.group_failed("SIGKILL")
    queue.group_started()


def test_new_ranks_begin_the_attempt_again(queue: JobQueue) -> None:
    join(queue, FIRST)
    queue.next(after=0)
    replace_group(queue)
    assert queue.next(after=0) == Assignment(1, FIRST)
    queue.attempt_done(1)
    assert queue.status(FIRST).state == "done"


def test_attempt_that_ranks_die_of_fails_with_their_last_words(queue: JobQueue) -> None:
    join(queue, FIRST)
    queue.next(after=0)
    queue.attempt_error(1, "out of memory")
    for _ in range(RESTARTS):
        replace_group(queue)
        assert queue.status(FIRST).state == "working"
    queue.group_failed("SIGKILL")
    status = queue.status(FIRST)
    assert (status.state, status.message) == ("failed", "the ranks failed 3 times: out of memory")


def test_a_growing_group_has_not_died(queue: JobQueue) -> None:
    join(queue, FIRST)
    queue.next(after=0)
    for _ in range(3 * RESTARTS):
        queue.group_started()
        assert queue.next(after=0) == Assignment(1, FIRST)
    for _ in range(RESTARTS):
        replace_group(queue)
    assert queue.status(FIRST).state == "working"


def test_ranks_that_die_before_they_have_started_are_counted_for_the_waiting_attempt() -> None:
    queue = JobQueue()
    assert join(queue, FIRST, SECOND) == ["working", "waiting"]
    for _ in range(RESTARTS):
        queue.group_failed("no GPU answers")
        assert queue.status(FIRST).state == "working"
    queue.group_failed("no GPU answers")
    status = queue.status(FIRST)
    assert (status.state, status.message) == ("failed", "the ranks failed 3 times: no GPU answers")
    assert queue.status(SECOND).state == "working"
    queue.group_started()
    assert queue.next(after=0) == Assignment(2, SECOND)


def test_ranks_that_die_with_nothing_in_work_are_counted_for_the_waiting_attempt() -> None:
    queue = JobQueue()
    join(queue, FIRST, SECOND)
    for _ in range(RESTARTS):
        queue.group_started()
        queue.group_failed("CUDA error")
        assert queue.status(FIRST).state == "working"
    queue.group_started()
    queue.group_failed("CUDA error")
    status = queue.status(FIRST)
    assert (status.state, status.message) == ("failed", "the ranks failed 3 times: CUDA error")
    assert queue.status(SECOND).state == "working"


def test_ranks_lost_to_a_rejected_attempt_are_charged_to_no_attempt(queue: JobQueue) -> None:
    join(queue, FIRST)
    queue.next(after=0)
    queue.attempt_failed(1, "NaN in column b")
    join(queue, SECOND)
    replace_group(queue)
    assert queue.next(after=0) == Assignment(2, SECOND)
    for _ in range(RESTARTS):
        replace_group(queue)
    assert queue.status(SECOND).state == "working"
    queue.group_failed("SIGKILL")
    assert queue.status(SECOND).state == "failed"


def test_ranks_lost_to_an_abandoned_attempt_are_charged_to_no_attempt(queue: JobQueue) -> None:
    join(queue, FIRST, SECOND)
    queue.next(after=0)
    queue.leave(FIRST)
    replace_group(queue)
    assert queue.next(after=0) == Assignment(2, SECOND)
    for _ in range(RESTARTS):
        replace_group(queue)
    assert queue.status(SECOND).state == "working"


def test_deaths_are_counted_separately_for_each_attempt(queue: JobQueue) -> None:
    for number, attempt in enumerate((FIRST, SECOND), start=1):
        join(queue, attempt)
        queue.next(after=0)
        for _ in range(RESTARTS):
            replace_group(queue)
        queue.attempt_done(number)
        assert queue.status(attempt).state == "done"


def test_deaths_are_forgiven_to_groups_that_worked_for_long() -> None:
    now = 0.0
    queue = JobQueue(lambda: now)
    queue.group_started()
    join(queue, FIRST)
    queue.next(after=0)
    for _ in range(3 * RESTARTS):
        now += FORGIVEN_AFTER_SECONDS
        replace_group(queue)
        assert queue.status(FIRST).state == "working"
    for _ in range(RESTARTS):
        now += 1
        replace_group(queue)
    assert queue.status(FIRST).state == "failed"


def test_attempt_that_has_left_is_abandoned(queue: JobQueue) -> None:
    join(queue, FIRST)
    queue.next(after=0)
    assert not queue.is_abandoned()
    queue.leave(FIRST)
    assert queue.is_abandoned()
    queue.group_started()
    assert not queue.is_abandoned()
    assert queue.next(after=0) is None


def test_abandoned_attempt_that_ends_in_time_makes_room(queue: JobQueue) -> None:
    join(queue, FIRST, SECOND)
    queue.next(after=0)
    queue.leave(FIRST)
    queue.attempt_done(1)
    assert not queue.is_abandoned()
    assert queue.next(after=1) == Assignment(2, SECOND)


def test_attempts_that_have_left_are_not_trained(queue: JobQueue) -> None:
    join(queue, FIRST, SECOND, THIRD)
    queue.next(after=0)
    queue.leave(SECOND)
    queue.attempt_done(1)
    assert queue.next(after=1) == Assignment(2, THIRD)


def test_next_attempt_of_a_job_ends_the_one_before(queue: JobQueue) -> None:
    join(queue, FIRST, SECOND)
    queue.next(after=0)
    again = replace(FIRST, attempt=2)
    assert join(queue, again) == ["waiting"]
    assert queue.status(FIRST).state == "failed"
    assert queue.is_abandoned()
    queue.group_started()
    assert queue.next(after=0) == Assignment(2, SECOND)


def test_attempt_that_comes_after_its_successor_is_refused(queue: JobQueue) -> None:
    assert join(queue, replace(FIRST, attempt=2), FIRST) == ["working", "failed"]


def test_status_of_an_earlier_assignment_changes_nothing(queue: JobQueue) -> None:
    join(queue, FIRST, SECOND)
    queue.next(after=0)
    queue.attempt_done(1)
    queue.next(after=1)
    queue.attempt_failed(1, "late")
    queue.attempt_done(1)
    assert queue.status(SECOND).state == "working"


def test_ranks_retire_after_so_many_attempts_and_new_ones_take_over(queue: JobQueue) -> None:
    for number in range(1, ATTEMPTS_PER_GROUP + 1):
        join(queue, FIRST)
        assert queue.next(after=number - 1) == Assignment(number, FIRST)
        queue.attempt_done(number)
        queue.leave(FIRST)
    join(queue, SECOND)
    assert queue.next(after=ATTEMPTS_PER_GROUP) == Retire()
    queue.group_started()
    assert queue.next(after=0) == Assignment(ATTEMPTS_PER_GROUP + 1, SECOND)


def test_new_ranks_that_die_at_their_start_after_others_retired_are_counted(
    queue: JobQueue,
) -> None:
    for number in range(1, ATTEMPTS_PER_GROUP + 1):
        join(queue, FIRST)
        queue.next(after=number - 1)
        queue.attempt_done(number)
        queue.leave(FIRST)
    join(queue, SECOND)
    assert queue.next(after=ATTEMPTS_PER_GROUP) == Retire()
    for _ in range(RESTARTS + 1):
        assert queue.status(SECOND).state == "working"
        queue.group_failed("no GPU answers")
    assert queue.status(SECOND).state == "failed"
