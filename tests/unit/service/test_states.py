"""The table of states."""

import itertools

import pytest

from cmcl.contract.api.jobs import FINAL_STATES, JobState
from service.core.states import CANCELLABLE, IN_FLIGHT, LEGAL_MOVES, IllegalMove, check_move
from service.database.queries import jobs
from service.jobs.reconciler import STEPS
from tests.fakes.control_plane import ControlPlane

PAIRS = list(itertools.product(JobState, JobState))


def test_every_state_has_a_line_in_the_table() -> None:
    assert set(LEGAL_MOVES) == set(JobState)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_only_listed_moves_are_legal(source: JobState, target: JobState) -> None:
    if target in LEGAL_MOVES[source]:
        check_move(source, target)
    else:
        with pytest.raises(IllegalMove, match=f"{source} -> {target}"):
            check_move(source, target)


def test_final_states_are_left_by_users_alone() -> None:
    left = {(state, target) for state in FINAL_STATES for target in LEGAL_MOVES[state]}
    assert left == {(JobState.FAILED, JobState.QUEUED), (JobState.REJECTED, JobState.QUEUED)}


def test_each_unfinished_state_has_a_step_or_is_prepared_or_watched() -> None:
    others = {JobState.QUEUED, JobState.PREPARING, JobState.RUNNING}
    assert set(STEPS) == set(JobState) - FINAL_STATES - others


def test_in_flight_is_neither_waiting_nor_final() -> None:
    waiting = {JobState.QUEUED, JobState.PREPARING, JobState.PREPARED}
    assert set(JobState) - FINAL_STATES - waiting == IN_FLIGHT


def test_every_cancellable_state_may_become_cancelled() -> None:
    assert {s for s in JobState if JobState.CANCELLED in LEGAL_MOVES[s]} == CANCELLABLE


def test_every_state_can_be_reached() -> None:
    reached = {JobState.QUEUED}
    for _ in JobState:
        reached |= {target for state in reached for target in LEGAL_MOVES[state]}
    assert reached == set(JobState)


def test_a_job_that_moved_since_it_was_read_does_not_move_again(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    seen = plane.job(job)
    now = plane.context.clock()
    with plane.context.database.write() as connection:
        assert jobs.request_cancel(connection, seen, now)
        assert not jobs.request_cancel(connection, seen, now)
        assert not jobs.move(connection, seen, JobState.CANCELLED, now)
        jobs.set_message(connection, seen, "of the one that came late")
    left = plane.job(job)
    assert (left.state, left.revision) == (JobState.QUEUED, seen.revision + 1)
    assert left.message is None
