"""The reconciler: the path of a dataset to a version, and what may fail on it."""

import itertools
from pathlib import Path

import pytest
from sqlalchemy import update

from cmcl.contract.api.jobs import FINAL_STATES, FailureReason, JobState
from cmcl.contract.job import Failure, JobSpec, submission_id
from cmcl.storage import layout
from cmcl.storage.running import forget_running, mark_ended
from cmcl.storage.versions import read_version
from service.core.states import CANCELLABLE, IN_FLIGHT, LEGAL_MOVES, IllegalMove, check_move
from service.database import tables
from service.database.queries import jobs
from service.jobs.publish import judge
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


def test_each_state_is_passed_in_order(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    seen = [plane.job(job).state]
    for _ in range(5):
        plane.tick()
        seen.append(plane.job(job).state)
    train(plane.store, job, 1)
    for _ in range(2):
        plane.tick()
        seen.append(plane.job(job).state)
    waiting = ["queued", "preparing", "preparing", "prepared"]
    assert seen == [*waiting, "submitting", "running", "gating", "published"]


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


def test_two_models_learn_beside_each_other(plane: ControlPlane) -> None:
    plane.create_model("sounds")
    first, second = plane.post_dataset(), plane.post_dataset(model="sounds")
    plane.tick_to(first, JobState.RUNNING)
    assert plane.job(second).state == JobState.RUNNING


def test_the_spec_has_everything_that_the_worker_needs(plane: ControlPlane) -> None:
    job = plane.post_dataset(evaluation_shards=[plane.shard("held-out")])
    plane.tick_to(job, JobState.RUNNING)
    spec = JobSpec.model_validate_json(plane.store.read(layout.run_spec(job, 1)))
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


def test_progress_of_the_attempt_is_shown(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    assert plane.job(job).message == "the attempt is starting on the cluster"
    progress = report_progress(plane.store, job, 1, "training", updates_done=4)
    plane.tick()
    assert plane.job(job).progress == progress
    assert plane.job(job).message is None


def test_unreadable_progress_is_ignored(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.store.put(layout.running_file(f"{job}-a1", "00000001_of_another_release"), b"{")
    plane.tick()
    assert plane.run_to_end(job).state == JobState.PUBLISHED


def test_a_loss_that_is_no_number_is_kept_as_none(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    report_progress(plane.store, job, 1, "training", figures={"loss": float("nan")})
    plane.tick()
    progress = plane.job(job).progress
    assert progress is not None
    assert progress.loss is None


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


def test_a_job_that_the_cluster_forgot_is_lost(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.launcher.lose(f"{job}-a1")
    plane.tick()
    assert plane.job(job).state == JobState.PREPARED


def test_a_failed_launch_with_candidate_is_adopted(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "the head restarted")
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    assert plane.versions()[0].attempt == 1


def test_a_candidate_is_adopted_while_ray_is_unavailable(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.launcher.is_down = True
    train(plane.store, job, 1)
    assert plane.run_to_end(job).state == JobState.PUBLISHED


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


def test_a_job_that_was_moved_to_another_attempt_is_not_published(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    before = plane.tick_to(job, JobState.GATING)
    with plane.context.database.write() as connection:
        assert jobs.move(connection, before, JobState.PREPARED, plane.clock())
    judge(plane.context, before, plane.model())
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


def test_three_lost_attempts_are_enough(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    for attempt in (1, 2, 3):
        plane.tick_to(job, JobState.RUNNING)
        plane.launcher.end(f"{job}-a{attempt}", LaunchState.FAILED, "no space left")
        plane.tick()
    found = plane.job(job)
    assert (found.state, found.reason) == (JobState.FAILED, FailureReason.ATTEMPTS_EXHAUSTED)
    assert "no space left" in (found.message or "")


def test_a_failed_job_frees_the_way_for_the_next(plane: ControlPlane) -> None:
    first, second = plane.post_dataset("one"), plane.post_dataset("two")
    for attempt in (1, 2, 3):
        plane.tick_to(first, JobState.RUNNING)
        plane.launcher.end(f"{first}-a{attempt}", LaunchState.FAILED)
        plane.tick()
    plane.run_to_end(second)
    assert [(version.number, version.job) for version in plane.versions()] == [(1, second)]


def test_no_progress_in_time_fails_the_job(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.tick()
    plane.clock.advance(601)
    plane.tick(2)
    assert plane.job(job).reason == FailureReason.START_DEADLINE
    assert plane.launcher.running() == []


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


def test_an_attempt_that_never_ends_is_stopped(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    report_progress(plane.store, job, 1, "training")
    plane.tick()
    plane.clock.advance(86401)
    plane.tick(2)
    assert plane.job(job).reason == FailureReason.RUN_DEADLINE


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


def test_an_unavailable_cluster_is_waited_for(plane: ControlPlane) -> None:
    plane.launcher.is_down = True
    job = plane.post_dataset()
    plane.tick_to(job, JobState.SUBMITTING)
    plane.clock.advance(10_000)
    plane.tick(3)
    assert plane.job(job).state == JobState.SUBMITTING
    assert "waiting" in (plane.job(job).message or "")
    plane.launcher.is_down = False
    plane.clock.advance(30)
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    assert plane.job(job).message is None


def test_a_cluster_that_keeps_refusing_fails_the_job(plane: ControlPlane) -> None:
    plane.launcher.refuses = True
    job = plane.post_dataset()
    plane.tick_to(job, JobState.SUBMITTING)
    plane.tick()
    assert plane.job(job).state == JobState.SUBMITTING
    plane.clock.advance(601)
    plane.tick()
    assert plane.job(job).reason == FailureReason.LAUNCHER_REJECTED


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
    assert "internal server error (RuntimeError)" in (plane.job(job).message or "")


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


def test_a_candidate_with_a_file_of_another_size_is_refused(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    heads = train(plane.store, job, 1).files[layout.HEADS]
    plane.store.put(layout.blob(heads.sha256), b"other bytes")
    plane.tick(2)
    assert plane.job(job).reason == FailureReason.INVALID_CANDIDATE


def test_a_manifest_that_cannot_be_read_is_refused(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.store.put(layout.run_candidate(job, 1), b"{}")
    mark_ended(plane.store, job, 1)
    plane.tick(2)
    assert plane.job(job).reason == FailureReason.INVALID_CANDIDATE


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


def test_too_much_drift_rejects_the_candidate(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    plane.create_model(policy="preserve")
    plane.run_to_end(plane.post_dataset("one"))
    job = plane.post_dataset("two")
    found = plane.run_to_end(job, drift=0.9)
    assert (found.state, found.reason) == (JobState.REJECTED, FailureReason.DRIFT_TOO_LARGE)
    assert "'one'" in (found.message or "")
    assert "90 %" in (found.message or "")
    assert plane.model().live_version == 1
    plane.close()


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


def test_a_short_outage_of_the_store_is_survived(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.store.broken = ""
    plane.tick(3)
    assert plane.job(job).state == JobState.PREPARING
    assert "waiting" in (plane.job(job).message or "")
    plane.store.broken = None
    assert plane.run_to_end(job).state == JobState.PUBLISHED


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


def test_a_failure_that_cannot_be_read_is_a_lost_attempt(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.store.put(layout.run_failure(job, 1), b"{")
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED)
    plane.tick()
    assert plane.job(job).state == JobState.PREPARED


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
