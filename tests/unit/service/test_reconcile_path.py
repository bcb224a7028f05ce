"""The states of one dataset's job, step by step."""

from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import JobSpec
from cmcl.storage import layout
from cmcl.storage.versions import read_version
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
