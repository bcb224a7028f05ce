"""The reconciler: the path of a dataset to a version, and what may fail on it."""

import itertools
from collections.abc import Callable

import pytest
from sqlalchemy import update

from cmcl.contract.api.jobs import FINAL_STATES, FailureReason, JobState
from cmcl.contract.job import Failure, JobSpec, submission_id
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.running import forget_running, mark_ended
from cmcl.storage.versions import read_version
from service.core.states import CANCELLABLE, LEGAL_MOVES, IllegalMove, check_move
from service.database import tables
from service.database.queries import jobs
from service.jobs.publish import decide
from service.jobs.reconciler import STEPS
from service.launchers.port import LaunchState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import report_progress, train


def test_a_dataset_becomes_one_live_version(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    (version,) = plane.versions()
    assert (version.number, version.parent, version.job) == (1, None, job)
    assert plane.answering() == (1, 1)
    assert read_version(plane.store, "scenes", 1) == version.manifest


def test_the_second_version_grows_from_the_first(plane: ControlPlane) -> None:
    first, second = plane.post_dataset("one"), plane.post_dataset("two")
    plane.run_to_end(first)
    plane.run_to_end(second)
    assert [version.parent for version in plane.versions()] == [None, 1]
    assert len(plane.versions()[1].manifest.learned) == 2
    assert plane.answering() == (2, 2)


def test_one_job_of_a_model_is_in_flight(plane: ControlPlane) -> None:
    first, second = plane.post_dataset("one"), plane.post_dataset("two")
    plane.tick_to(first, JobState.RUNNING)
    plane.tick(3)
    assert plane.job(second).state == JobState.PREPARED
    assert "earlier datasets" in (plane.job(second).message or "")
    assert plane.launcher.running() == [f"{first}-a1"]


def test_no_job_begins_before_its_parent_is_stored(plane: ControlPlane) -> None:
    first, second = plane.post_dataset("one"), plane.post_dataset("two")
    plane.tick_to(first, JobState.RUNNING)
    train(plane.store, first, 1)
    plane.tick_to(first, JobState.PUBLISHED)
    assert plane.versions()[0].stored_at is None
    plane.tick()
    assert plane.versions()[0].stored_at is not None
    assert plane.job(second).state == JobState.PREPARED


def test_the_spec_has_everything_that_the_worker_needs(plane: ControlPlane) -> None:
    job = plane.post_dataset(evaluation_shards=[plane.shard("held-out")])
    plane.tick_to(job, JobState.RUNNING)
    spec = read_document(plane.store, layout.run_spec(job, 1), JobSpec)
    assert (spec.version, spec.parent, spec.learns.rows) == (1, None, 16)
    (held_out,) = spec.learns.evaluation_shards
    key = layout.evaluation_shard(spec.learns.dataset, 0, held_out.sha256)
    assert held_out.uri == f"{plane.store.uri}/{key}"
    assert plane.store.size(key) == held_out.bytes


def test_the_command_names_store_job_and_attempt(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    command = plane.launcher.commands[f"{job}-a1"]
    assert command[:3] == ["python", "-m", "workers.train"]
    options = dict(zip(command[3::2], command[4::2], strict=True))
    assert options == {
        "--store": plane.store.uri,
        "--job": job,
        "--attempt": "1",
        "--ranks": "1",
        "--gpus-per-rank": "0",
    }


@pytest.mark.parametrize("state", [LaunchState.FAILED, LaunchState.SUCCEEDED, LaunchState.STOPPED])
def test_an_end_without_candidate_is_a_lost_attempt(
    plane: ControlPlane, state: LaunchState
) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.launcher.end(f"{job}-a1", state, "out of memory")
    plane.tick()
    assert plane.job(job).state == JobState.PREPARED
    assert "out of memory" in (plane.job(job).message or "")
    assert plane.tick_to(job, JobState.RUNNING).attempt == 2


def test_a_candidate_is_looked_for_when_an_attempt_has_ended_without_showing_it(
    plane: ControlPlane,
) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    forget_running(plane.store, submission_id(job, 1))
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "the node was lost")
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    assert plane.versions()[0].attempt == 1


def _fails_without_a_reason(plane: ControlPlane, job: str) -> None:
    plane.store.put(layout.run_failure(job, 1), b"{")
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED)


def _changes_its_heads(plane: ControlPlane, job: str) -> None:
    heads = train(plane.store, job, 1).files[layout.HEADS]
    plane.store.put(layout.blob(heads.sha256), b"other bytes")


def _shows(plane: ControlPlane, job: str, key: str, content: bytes) -> None:
    plane.store.put(key, content)
    mark_ended(plane.store, job, 1)


def _falls_silent(plane: ControlPlane, job: str, seconds: float, *, reports: bool) -> None:
    if reports:
        report_progress(plane.store, job, 1, "training")
    plane.tick()
    plane.clock.advance(seconds)


def _trains_although(plane: ControlPlane, job: str, trouble: Callable[[], object]) -> None:
    train(plane.store, job, 1)
    trouble()


WHAT_HAPPENS: dict[
    str, tuple[Callable[[ControlPlane, str], object], JobState, FailureReason | None]
] = {
    "the cluster forgets it": (
        lambda plane, job: plane.launcher.lose(f"{job}-a1"),
        *(JobState.PREPARED, None),
    ),
    "a failure that cannot be read": (
        _fails_without_a_reason,
        *(JobState.PREPARED, None),
    ),
    "a manifest that cannot be read": (
        lambda plane, job: _shows(plane, job, layout.run_candidate(job, 1), b"{}"),
        *(JobState.FAILED, FailureReason.INVALID_CANDIDATE),
    ),
    "a file of another size": (
        _changes_its_heads,
        *(JobState.FAILED, FailureReason.INVALID_CANDIDATE),
    ),
    "no progress in time": (
        lambda plane, job: _falls_silent(plane, job, 601, reports=False),
        *(JobState.FAILED, FailureReason.START_DEADLINE),
    ),
    "no end in time": (
        lambda plane, job: _falls_silent(plane, job, 86401, reports=True),
        *(JobState.FAILED, FailureReason.RUN_DEADLINE),
    ),
    "a false report of its end": (
        lambda plane, job: _trains_although(
            plane, job, lambda: plane.launcher.end(f"{job}-a1", LaunchState.FAILED)
        ),
        *(JobState.PUBLISHED, None),
    ),
    "an outage of the cluster": (
        lambda plane, job: _trains_although(
            plane, job, lambda: setattr(plane.launcher, "is_down", True)
        ),
        *(JobState.PUBLISHED, None),
    ),
    "progress that cannot be read": (
        lambda plane, job: _trains_although(
            plane,
            job,
            lambda: plane.store.put(layout.running_file(f"{job}-a1", "00000001_of_another"), b"{"),
        ),
        *(JobState.PUBLISHED, None),
    ),
}


@pytest.mark.parametrize("name", WHAT_HAPPENS)
def test_an_attempt_ends_as_what_happens_to_it(plane: ControlPlane, name: str) -> None:
    happens, state, reason = WHAT_HAPPENS[name]
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    happens(plane, job)
    assert plane.tick_to(job, state).reason == reason


def test_a_cluster_that_keeps_refusing_fails_the_job(plane: ControlPlane) -> None:
    plane.launcher.refuses = True
    job = plane.post_dataset()
    plane.tick_to(job, JobState.SUBMITTING)
    plane.tick()
    assert plane.job(job).state == JobState.SUBMITTING
    plane.clock.advance(601)
    plane.tick()
    assert plane.job(job).reason == FailureReason.LAUNCHER_REJECTED


def test_a_job_that_was_moved_to_another_attempt_is_not_published(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    before = plane.tick_to(job, JobState.GATING)
    with plane.context.database.write() as connection:
        assert jobs.move(connection, before, JobState.PREPARED, plane.clock())
    decide(plane.context, before, plane.model())
    assert (plane.versions(), plane.model().head) == ([], 0)
    assert plane.run_to_end(job).attempt == 2


def test_a_late_candidate_of_a_lost_attempt_is_ignored(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED)
    plane.tick_to(job, JobState.PREPARED)
    train(plane.store, job, 1)
    plane.run_to_end(job)
    (version,) = plane.versions()
    assert version.attempt == 2


def test_the_reason_for_missing_ranks_is_shown_at_once_and_at_the_start_deadline(
    plane: ControlPlane,
) -> None:
    job, note = plane.post_dataset(), "CMCL_RANKS is 2 for the ranks that stay and 4 for this one"
    plane.tick_to(job, JobState.RUNNING)
    report_progress(plane.store, job, 1, "starting", figures={"note": note})
    plane.tick()
    assert plane.job(job).message == note
    plane.clock.advance(601)
    plane.tick(2)
    assert plane.job(job).reason == FailureReason.START_DEADLINE
    assert note in (plane.job(job).message or "")


def test_progress_keeps_the_start_deadline_away(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    report_progress(plane.store, job, 1, "starting")
    plane.tick()
    for second in range(3):
        plane.clock.advance(250)
        report_progress(plane.store, job, 1, "reading", second)
        plane.tick()
    assert plane.job(job).state == JobState.RUNNING


def test_a_job_is_not_over_before_its_attempt_is(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.launcher.stops_at_once = False
    plane.tick()
    plane.clock.advance(601)
    plane.tick(3)
    assert plane.job(job).state == JobState.RUNNING
    plane.launcher.end(f"{job}-a1", LaunchState.STOPPED)
    plane.tick()
    assert plane.job(job).state == JobState.FAILED


def test_trouble_in_one_model_stays_there(plane: ControlPlane) -> None:
    plane.create_model("sounds")
    broken, sound = plane.post_dataset(), plane.post_dataset(model="sounds")
    plane.tick_to(broken, JobState.RUNNING)
    train(plane.store, broken, 1)
    plane.tick_to(broken, JobState.PUBLISHED)
    # Its manifest cannot be stored: nothing can be done for this model.
    plane.store.broken = "scenes/versions/"
    assert plane.run_to_end(sound).state == JobState.PUBLISHED
    assert plane.versions("scenes")[0].stored_at is None


def test_a_job_says_that_an_internal_error_holds_it_up(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.SUBMITTING)
    with plane.context.database.write() as connection:
        connection.execute(update(tables.datasets).values(manifest=None))
    plane.tick(3)
    assert plane.job(job).state == JobState.SUBMITTING
    assert "internal server error (AssertionError)" in (plane.job(job).message or "")


def test_a_failing_model_is_reconciled_less_and_less_often(plane: ControlPlane) -> None:
    plane.launcher.is_down = True
    job = plane.post_dataset()
    plane.tick_to(job, JobState.SUBMITTING)
    plane.tick(100)
    errors = plane.context.metrics.registry.get_sample_value(
        "cmcl_service_reconcile_errors_total", {"error": "LauncherUnavailable"}
    )
    assert errors is not None
    assert 5 < errors < 15


@pytest.mark.parametrize("missing", [layout.HEADS, "moments"])
def test_a_candidate_with_a_missing_file_is_refused(plane: ControlPlane, missing: str) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    entries = train(plane.store, job, 1).own
    (found,) = [entry for name, entry in entries.items() if name.startswith(missing)]
    plane.store.delete(layout.blob(found.sha256))
    plane.tick(2)
    assert plane.job(job).reason == FailureReason.INVALID_CANDIDATE
    assert missing in (plane.job(job).message or "")
    assert plane.versions() == []


def test_a_database_older_than_the_bucket_writes_over_no_version(plane: ControlPlane) -> None:
    """As after the restore of a dump that is older than object storage."""
    plane.run_to_end(plane.post_dataset("one"))
    job = plane.post_dataset("two")
    plane.tick_to(job, JobState.RUNNING)
    candidate = train(plane.store, job, 1)
    lost = candidate.model_copy(update={"job": "job-lost", "files": {}})
    key = layout.version_manifest("scenes", 2)
    plane.store.put(key, lost.model_dump_json().encode())
    plane.tick(2)
    assert plane.job(job).reason == FailureReason.INVALID_CANDIDATE
    assert "rebuild the database" in (plane.job(job).message or "")
    assert plane.store.read(key) == lost.model_dump_json().encode()
    assert [version.number for version in plane.versions()] == [1]


def test_a_stale_parent_sends_the_job_back(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset("one"))
    job = plane.post_dataset("two")
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    plane.tick_to(job, JobState.GATING)
    with plane.context.database.write() as connection:
        connection.exec_driver_sql("UPDATE models SET head = 5")
    plane.tick()
    assert plane.job(job).state == JobState.PREPARED
    assert len(plane.versions()) == 1


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Failure(reason="invalid_dataset", message="another digest"), "invalid_dataset"),
        (Failure(reason="training_failed", message="diverged"), "training_failed"),
        (Failure(reason="store_damaged", message="restore it"), "store_damaged"),
    ],
)
def test_an_attempt_with_a_permanent_error_is_not_repeated(
    plane: ControlPlane, failure: Failure, reason: str
) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.store.put(layout.run_failure(job, 1), failure.model_dump_json().encode())
    mark_ended(plane.store, job, 1)
    plane.tick()
    assert plane.job(job).state == JobState.RUNNING, "until it was stopped"
    plane.tick()
    ended = plane.job(job)
    assert (ended.state, ended.reason, ended.attempt) == (JobState.FAILED, reason, 1)
    assert ended.message == failure.message


PAIRS = list(itertools.product(JobState, JobState))


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
