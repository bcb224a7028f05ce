"""The line for the warm ranks: in order, one at a time, and nobody waits for the dead."""

from dataclasses import replace

import pytest

from tests.fakes.clock import ScriptedClock
from workers.train.warm.desk import (
    ATTEMPTS_PER_GROUP,
    PATIENCE_SECONDS,
    RESTARTS,
    Assignment,
    Attempt,
    Desk,
    Retire,
)

FIRST, SECOND, THIRD = (Attempt("file:///store", f"job-{number}", 1) for number in (1, 2, 3))


@pytest.fixture
def clock() -> ScriptedClock:
    return ScriptedClock()


@pytest.fixture
def desk(clock: ScriptedClock) -> Desk:
    desk = Desk(lambda: clock().timestamp())
    desk.group_started()
    return desk


def test_attempts_are_worked_on_in_order_of_arrival(desk: Desk) -> None:
    assert [desk.ask(each).state for each in (FIRST, SECOND)] == ["working", "waiting"]
    assert desk.next(after=0) == Assignment(1, FIRST)
    assert desk.next(after=1) is None, "a rank that is done first waits for the others"
    desk.finished(1)
    assert desk.ask(SECOND).state == "working"
    assert desk.next(after=1) == Assignment(2, SECOND)
    assert desk.ask(FIRST).state == "done"


def test_every_rank_gets_the_same_assignment(desk: Desk) -> None:
    desk.ask(FIRST)
    assert desk.next(after=0) == desk.next(after=0) == Assignment(1, FIRST)


def test_final_answer_is_given_once_and_forgotten(desk: Desk) -> None:
    desk.ask(FIRST)
    desk.next(after=0)
    desk.finished(1)
    assert desk.ask(FIRST).state == "done"
    assert desk.is_empty


def test_refusal_is_told_in_its_words(desk: Desk) -> None:
    desk.ask(FIRST)
    desk.next(after=0)
    desk.refused(1, "a smaller learning rate")
    answer = desk.ask(FIRST)
    assert (answer.state, answer.words) == ("failed", "a smaller learning rate")


def test_new_ranks_begin_the_attempt_again(desk: Desk) -> None:
    desk.ask(FIRST)
    desk.next(after=0)
    desk.group_started()
    assert desk.next(after=0) == Assignment(1, FIRST)
    desk.finished(1)
    assert desk.ask(FIRST).state == "done"


def test_attempt_that_ranks_die_of_fails_with_their_last_words(desk: Desk) -> None:
    desk.ask(FIRST)
    desk.next(after=0)
    desk.stumbled(1, "out of memory")
    for _ in range(RESTARTS):
        desk.group_started()
        assert desk.ask(FIRST).state == "working"
    desk.group_started()
    answer = desk.ask(FIRST)
    assert (answer.state, answer.words) == ("failed", "the ranks died 3 times: out of memory")


def test_deaths_are_counted_for_each_attempt_anew(desk: Desk) -> None:
    for number, attempt in enumerate((FIRST, SECOND), start=1):
        desk.ask(attempt)
        desk.next(after=0)
        for _ in range(RESTARTS):
            desk.group_started()
        desk.finished(number)
        assert desk.ask(attempt).state == "done"


def test_attempt_that_nobody_asks_for_is_abandoned(desk: Desk, clock: ScriptedClock) -> None:
    desk.ask(FIRST)
    desk.next(after=0)
    clock.advance(PATIENCE_SECONDS)
    assert not desk.is_abandoned()
    clock.advance(1)
    assert desk.is_abandoned()
    desk.group_started()
    assert desk.next(after=0) is None


def test_withdrawn_attempt_is_abandoned_at_once(desk: Desk) -> None:
    desk.ask(FIRST)
    desk.next(after=0)
    desk.withdraw(FIRST)
    assert desk.is_abandoned()


def test_next_attempt_of_a_job_ends_the_one_before(desk: Desk) -> None:
    for attempt in (FIRST, SECOND):
        desk.ask(attempt)
    desk.next(after=0)
    again = replace(FIRST, attempt=2)
    assert desk.ask(again).state == "waiting"
    assert desk.ask(FIRST).state == "failed"
    assert desk.is_abandoned()
    desk.group_started()
    assert desk.next(after=0) == Assignment(2, SECOND)


def test_silent_attempts_leave_the_line(desk: Desk, clock: ScriptedClock) -> None:
    for attempt in (FIRST, SECOND, THIRD):
        desk.ask(attempt)
    desk.next(after=0)
    clock.advance(PATIENCE_SECONDS + 1)
    desk.ask(THIRD)
    desk.finished(1)
    assert desk.next(after=1) == Assignment(2, THIRD)


def test_word_of_an_earlier_assignment_changes_nothing(desk: Desk) -> None:
    for attempt in (FIRST, SECOND):
        desk.ask(attempt)
    desk.next(after=0)
    desk.finished(1)
    desk.next(after=1)
    desk.refused(1, "late")
    desk.finished(1)
    assert desk.ask(SECOND).state == "working"


def test_ranks_retire_after_so_many_attempts_and_new_ones_go_on(desk: Desk) -> None:
    for number in range(1, ATTEMPTS_PER_GROUP + 1):
        desk.ask(FIRST)
        assert desk.next(after=number - 1) == Assignment(number, FIRST)
        desk.finished(number)
        desk.ask(FIRST)
    desk.ask(SECOND)
    assert desk.next(after=ATTEMPTS_PER_GROUP) == Retire()
    desk.group_started()
    assert desk.next(after=0) == Assignment(ATTEMPTS_PER_GROUP + 1, SECOND)


def test_attempt_asked_for_again_after_its_end_is_a_new_one(desk: Desk) -> None:
    for number in (1, 2):
        desk.ask(FIRST)
        assert desk.next(after=number - 1) == Assignment(number, FIRST)
        desk.finished(number)
        assert desk.ask(FIRST).state == "done"
