"""The line for the warm ranks: by priority, one at a time, and nobody waits for the dead."""

from dataclasses import replace

import pytest

from workers.train.warm.desk import (
    ATTEMPTS_PER_GROUP,
    FORGIVEN_AFTER_SECONDS,
    RESTARTS,
    Assignment,
    Attempt,
    Desk,
    Retire,
)

FIRST, SECOND, THIRD = (Attempt("file:///store", f"job-{number}", 1) for number in (1, 2, 3))


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.group_started()
    return desk


def join(desk: Desk, *attempts: Attempt) -> list[str]:
    """They come in this order; what each is told at once."""
    for attempt in attempts:
        desk.join(attempt)
    return [desk.answer(attempt).state for attempt in attempts]


def test_attempts_are_worked_on_in_order_of_arrival(desk: Desk) -> None:
    assert join(desk, FIRST, SECOND) == ["working", "waiting"]
    assert desk.next(after=0) == Assignment(1, FIRST)
    assert desk.next(after=1) is None, "a rank that is done first waits for the others"
    desk.finished(1)
    assert desk.answer(SECOND).state == "working"
    assert desk.next(after=1) == Assignment(2, SECOND)
    assert desk.answer(FIRST).state == "done"


def test_line_is_ordered_by_priority_then_arrival(desk: Desk) -> None:
    low, normal, high, later = (replace(FIRST, job=name) for name in ("l", "n", "h", "h-later"))
    desk.join(FIRST)
    desk.next(after=0)
    desk.join(low, "low")
    desk.join(normal)
    desk.join(high, "high")
    desk.join(later, "high")
    assert desk.answer(FIRST).state == "working", "what is in work is finished"
    learned = []
    for number in range(1, 5):
        desk.finished(number)
        found = desk.next(after=number)
        assert isinstance(found, Assignment)
        learned.append(found.attempt)
    assert learned == [high, later, normal, low]


def test_next_in_line_is_told_that_it_is(desk: Desk) -> None:
    desk.join(FIRST, "low")
    assert desk.answer(FIRST).state == "working"
    desk.join(SECOND, "high")
    assert [desk.answer(each).state for each in (FIRST, SECOND)] == ["waiting", "working"]


def test_every_rank_gets_the_same_assignment(desk: Desk) -> None:
    join(desk, FIRST)
    assert desk.next(after=0) == desk.next(after=0) == Assignment(1, FIRST)


def test_desk_is_empty_once_all_have_left(desk: Desk) -> None:
    join(desk, FIRST, SECOND)
    desk.next(after=0)
    desk.finished(1)
    desk.leave(FIRST)
    assert not desk.is_empty
    desk.leave(SECOND)
    assert desk.is_empty


def test_refusal_is_told_in_its_words(desk: Desk) -> None:
    join(desk, FIRST)
    desk.next(after=0)
    desk.refused(1, "a smaller learning rate")
    answer = desk.answer(FIRST)
    assert (answer.state, answer.words) == ("failed", "a smaller learning rate")


def replace_group(desk: Desk) -> None:
    """The ranks die, and new ones come."""
    desk.group_died("SIGKILL")
    desk.group_started()


def test_new_ranks_begin_the_attempt_again(desk: Desk) -> None:
    join(desk, FIRST)
    desk.next(after=0)
    replace_group(desk)
    assert desk.next(after=0) == Assignment(1, FIRST)
    desk.finished(1)
    assert desk.answer(FIRST).state == "done"


def test_attempt_that_ranks_die_of_fails_with_their_last_words(desk: Desk) -> None:
    join(desk, FIRST)
    desk.next(after=0)
    desk.stumbled(1, "out of memory")
    for _ in range(RESTARTS):
        replace_group(desk)
        assert desk.answer(FIRST).state == "working"
    desk.group_died("SIGKILL")
    answer = desk.answer(FIRST)
    assert (answer.state, answer.words) == ("failed", "the ranks died 3 times: out of memory")


def test_group_that_becomes_larger_has_not_died(desk: Desk) -> None:
    join(desk, FIRST)
    desk.next(after=0)
    for _ in range(3 * RESTARTS):
        desk.group_started()
        assert desk.next(after=0) == Assignment(1, FIRST)
    for _ in range(RESTARTS):
        replace_group(desk)
    assert desk.answer(FIRST).state == "working"


def test_ranks_that_die_before_they_have_started_are_counted_for_who_waits_for_them() -> None:
    desk = Desk()
    assert join(desk, FIRST, SECOND) == ["working", "waiting"]
    for _ in range(RESTARTS):
        desk.group_died("no GPU answers")
        assert desk.answer(FIRST).state == "working"
    desk.group_died("no GPU answers")
    answer = desk.answer(FIRST)
    assert (answer.state, answer.words) == ("failed", "the ranks died 3 times: no GPU answers")
    assert desk.answer(SECOND).state == "working"
    desk.group_started()
    assert desk.next(after=0) == Assignment(2, SECOND)


def test_ranks_that_die_with_nothing_in_work_are_counted_for_who_waits_for_them() -> None:
    desk = Desk()
    join(desk, FIRST, SECOND)
    for _ in range(RESTARTS):
        desk.group_started()
        desk.group_died("CUDA error")
        assert desk.answer(FIRST).state == "working"
    desk.group_started()
    desk.group_died("CUDA error")
    answer = desk.answer(FIRST)
    assert (answer.state, answer.words) == ("failed", "the ranks died 3 times: CUDA error")
    assert desk.answer(SECOND).state == "working"


def test_nobody_pays_for_ranks_that_end_over_a_refused_attempt(desk: Desk) -> None:
    join(desk, FIRST)
    desk.next(after=0)
    desk.refused(1, "NaN in column b")
    join(desk, SECOND)
    replace_group(desk)
    assert desk.next(after=0) == Assignment(2, SECOND)
    for _ in range(RESTARTS):
        replace_group(desk)
    assert desk.answer(SECOND).state == "working"
    desk.group_died("SIGKILL")
    assert desk.answer(SECOND).state == "failed"


def test_nobody_pays_for_ranks_that_end_over_an_abandoned_attempt(desk: Desk) -> None:
    join(desk, FIRST, SECOND)
    desk.next(after=0)
    desk.leave(FIRST)
    replace_group(desk)
    assert desk.next(after=0) == Assignment(2, SECOND)
    for _ in range(RESTARTS):
        replace_group(desk)
    assert desk.answer(SECOND).state == "working"


def test_deaths_are_counted_for_each_attempt_anew(desk: Desk) -> None:
    for number, attempt in enumerate((FIRST, SECOND), start=1):
        join(desk, attempt)
        desk.next(after=0)
        for _ in range(RESTARTS):
            replace_group(desk)
        desk.finished(number)
        assert desk.answer(attempt).state == "done"


def test_deaths_are_forgiven_to_groups_that_worked_for_long() -> None:
    now = 0.0
    desk = Desk(lambda: now)
    desk.group_started()
    join(desk, FIRST)
    desk.next(after=0)
    for _ in range(3 * RESTARTS):
        now += FORGIVEN_AFTER_SECONDS
        replace_group(desk)
        assert desk.answer(FIRST).state == "working"
    for _ in range(RESTARTS):
        now += 1
        replace_group(desk)
    assert desk.answer(FIRST).state == "failed"


def test_attempt_whose_job_has_gone_is_abandoned(desk: Desk) -> None:
    join(desk, FIRST)
    desk.next(after=0)
    assert not desk.is_abandoned()
    desk.leave(FIRST)
    assert desk.is_abandoned()
    desk.group_started()
    assert not desk.is_abandoned()
    assert desk.next(after=0) is None


def test_abandoned_attempt_that_ends_in_time_makes_room(desk: Desk) -> None:
    join(desk, FIRST, SECOND)
    desk.next(after=0)
    desk.leave(FIRST)
    desk.finished(1)
    assert not desk.is_abandoned()
    assert desk.next(after=1) == Assignment(2, SECOND)


def test_jobs_that_have_gone_leave_the_line(desk: Desk) -> None:
    join(desk, FIRST, SECOND, THIRD)
    desk.next(after=0)
    desk.leave(SECOND)
    desk.finished(1)
    assert desk.next(after=1) == Assignment(2, THIRD)


def test_next_attempt_of_a_job_ends_the_one_before(desk: Desk) -> None:
    join(desk, FIRST, SECOND)
    desk.next(after=0)
    again = replace(FIRST, attempt=2)
    assert join(desk, again) == ["waiting"]
    assert desk.answer(FIRST).state == "failed"
    assert desk.is_abandoned()
    desk.group_started()
    assert desk.next(after=0) == Assignment(2, SECOND)


def test_attempt_that_comes_after_its_successor_is_refused(desk: Desk) -> None:
    assert join(desk, replace(FIRST, attempt=2), FIRST) == ["working", "failed"]


def test_word_of_an_earlier_assignment_changes_nothing(desk: Desk) -> None:
    join(desk, FIRST, SECOND)
    desk.next(after=0)
    desk.finished(1)
    desk.next(after=1)
    desk.refused(1, "late")
    desk.finished(1)
    assert desk.answer(SECOND).state == "working"


def test_ranks_retire_after_so_many_attempts_and_new_ones_go_on(desk: Desk) -> None:
    for number in range(1, ATTEMPTS_PER_GROUP + 1):
        join(desk, FIRST)
        assert desk.next(after=number - 1) == Assignment(number, FIRST)
        desk.finished(number)
        desk.leave(FIRST)
    join(desk, SECOND)
    assert desk.next(after=ATTEMPTS_PER_GROUP) == Retire()
    desk.group_started()
    assert desk.next(after=0) == Assignment(ATTEMPTS_PER_GROUP + 1, SECOND)


def test_new_ranks_that_die_at_their_start_after_others_retired_are_counted(desk: Desk) -> None:
    for number in range(1, ATTEMPTS_PER_GROUP + 1):
        join(desk, FIRST)
        desk.next(after=number - 1)
        desk.finished(number)
        desk.leave(FIRST)
    join(desk, SECOND)
    assert desk.next(after=ATTEMPTS_PER_GROUP) == Retire()
    for _ in range(RESTARTS + 1):
        assert desk.answer(SECOND).state == "working"
        desk.group_died("no GPU answers")
    assert desk.answer(SECOND).state == "failed"


def test_idle_is_counted_from_the_end_of_the_last_attempt() -> None:
    now = [0.0]
    desk = Desk(lambda: now[0])
    now[0] = 5.0
    assert desk.idle_seconds == 5.0, "nothing was wanted yet"
    desk.join(FIRST)
    desk.next(after=0)
    now[0] = 50.0
    assert desk.idle_seconds == 0.0
    desk.finished(1)
    now[0] = 51.0
    desk.leave(FIRST)
    now[0] = 58.0
    assert desk.idle_seconds == 7.0


def test_a_group_that_dies_over_what_nobody_wants_is_idle_from_then_on() -> None:
    now = [0.0]
    desk = Desk(lambda: now[0])
    desk.join(FIRST)
    desk.next(after=0)
    desk.leave(FIRST)
    now[0] = 30.0
    assert desk.idle_seconds == 0.0, "the ranks have not ended yet"
    desk.group_started()
    now[0] = 32.0
    assert desk.idle_seconds == 2.0
