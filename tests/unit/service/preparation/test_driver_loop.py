"""One driver on the cluster prepares datasets and trains attempts: it is submitted, watched, and replaced when it has ended."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.api.jobs import FailureReason, JobState
from service.database.queries import instances
from service.database.queries.instances import DriverRow
from service.jobs.driver import DriverLoop
from service.launchers.port import LauncherError, LaunchState, status_of
from tests.fakes.launcher import FakeLauncher
from tests.fakes.preparer import report_progress, requests_in
from tests.unit.service.preparation.conftest import Unattended


class Driven(Unattended):
    """A control plane with the loop that keeps the driver running."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self.loop = DriverLoop(self.context, self.reconciler.wake_preparations)

    def rounds(self, times: int = 1) -> None:
        """Run rounds of the loop, with a second between them."""
        for _ in range(times):
            try:
                self.loop.tick()
            except LauncherError as error:
                self.loop.report(error)
            self.clock.advance(1)

    def driver(self) -> DriverRow:
        with self.context.database.read() as connection:
            return instances.newest_driver(connection)

    def submitted(self) -> list[str]:
        return list(self.launcher.commands)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Driven]:
    plane = Driven(tmp_path)
    yield plane
    plane.close()


def test_the_driver_runs_before_there_is_work(plane: Driven) -> None:
    plane.rounds(3)
    (name,) = plane.submitted()
    assert name.startswith("driver-")
    assert name.endswith("-1")
    command = plane.launcher.commands[name]
    assert command[:5] == ["python", "-m", "workers.driver", "--store", plane.store.uri]
    assert command[5:] == [
        *("--ranks", "1", "--gpus-per-rank", "0", "--ranks-idle-seconds", "1800")
    ]
    assert plane.driver().runs


def test_a_driver_that_failed_is_replaced_after_a_growing_pause(plane: Driven) -> None:
    plane.rounds(2)
    job = plane.post_dataset()
    plane.tick(2)
    for failures, pause in ((1, 2), (2, 4), (3, 8)):
        newest = plane.submitted()[-1]
        plane.launcher.end(newest, LaunchState.FAILED, "killed")
        plane.rounds()
        assert plane.driver().failures == failures
        plane.tick(3)
        message = plane.job(job).message or ""
        assert "the driver on the cluster ended (failed: killed)" in message
        assert f"starts in {pause} s" in message
        number = len(plane.submitted())
        plane.rounds(pause + 2)
        assert len(plane.submitted()) == number + 1
    plane.rounds()
    plane.tick(3)
    assert plane.job(job).message == "waiting: the driver on the cluster is starting, or busy"


def test_a_driver_that_has_not_begun_with_a_dataset_is_its_message_until_it_has(
    plane: Driven,
) -> None:
    plane.rounds(2)
    job = plane.post_dataset()
    plane.tick(2)
    assert plane.job(job).message is None
    plane.rounds(10)
    plane.tick(3)
    assert "starting, or busy" in (plane.job(job).message or "")
    [request] = requests_in(plane.store)
    report_progress(plane.store, request, "planning")
    plane.rounds(3)
    plane.tick(3)
    assert plane.job(job).message is None


def test_a_long_run_ends_the_row_of_failures(plane: Driven) -> None:
    plane.rounds(2)
    plane.launcher.end(plane.submitted()[-1], LaunchState.FAILED)
    plane.rounds(5)
    assert plane.driver().failures == 1
    plane.clock.advance(301)
    plane.launcher.end(plane.submitted()[-1], LaunchState.FAILED)
    plane.rounds()
    assert plane.driver().failures == 0


def test_records_of_earlier_drivers_are_removed_from_the_cluster(plane: Driven) -> None:
    for _ in range(3):
        plane.rounds(9)
        plane.launcher.end(plane.submitted()[-1], LaunchState.FAILED)
    plane.rounds(20)
    first = plane.submitted()[0]
    assert status_of(plane.launcher, first).state == LaunchState.UNKNOWN


def test_an_outage_of_the_launcher_is_shown_and_fails_no_job(plane: Driven) -> None:
    plane.rounds(2)
    job = plane.post_dataset()
    plane.tick(2)
    plane.launcher.is_down = True
    plane.rounds()
    for _ in range(4):
        plane.clock.advance(3000)
        plane.tick(2)
    assert plane.job(job).state == JobState.PREPARING
    plane.launcher.is_down = False
    plane.rounds()
    assert plane.driver().unavailable_since is None
    plane.clock.advance(3000)
    plane.tick()
    assert plane.job(job).state == JobState.PREPARING
    plane.clock.advance(3700)
    plane.tick()
    assert plane.job(job).reason == FailureReason.PREPARE_DEADLINE


def test_a_cluster_that_does_not_start_it_is_named(plane: Driven) -> None:
    plane.launcher.starts_at_once = False
    job = plane.post_dataset()
    plane.tick(2)
    plane.rounds(2)
    plane.tick(3)
    assert "the cluster has not started" in (plane.job(job).message or "")


def test_a_preparation_waits_for_as_long_as_the_queue_of_the_cluster_takes(plane: Driven) -> None:
    job = plane.post_dataset()
    plane.tick(2)
    plane.rounds(3)
    (name,) = plane.submitted()
    plane.launcher.end(name, LaunchState.QUEUED, "waiting in queue training")
    for _ in range(3):
        plane.rounds(2)
        plane.clock.advance(86_400)
        plane.tick(2)
    assert plane.job(job).state == JobState.PREPARING
    expected = "the driver on the cluster is waiting in queue training"
    assert plane.job(job).message == expected
    assert not plane.driver().runs
    plane.launcher.end(name, LaunchState.RUNNING)
    plane.rounds(2)
    plane.clock.advance(plane.context.tuning.prepare_deadline_seconds - 60)
    plane.tick(2)
    assert plane.job(job).state == JobState.PREPARING
    assert "queue" not in (plane.job(job).message or "")
    plane.clock.advance(120)
    plane.tick(2)
    assert plane.job(job).reason == FailureReason.PREPARE_DEADLINE


def test_a_process_that_died_before_the_submission_loses_nothing(plane: Driven) -> None:
    with plane.context.database.write() as connection:
        instances.begin_driver(connection, DriverRow(), plane.clock())
    plane.rounds(2)
    assert [name[-2:] for name in plane.submitted()] == ["-1"]
    assert plane.driver().runs


def test_two_replicas_submit_one_driver(plane: Driven) -> None:
    other = DriverLoop(plane.context, plane.reconciler.wake_preparations)
    for _ in range(4):
        plane.loop.tick()
        other.tick()
    assert len(plane.submitted()) == 1


def test_a_driver_that_is_submitted_too_late_is_stopped(plane: Driven) -> None:
    """Another replica has recorded the end of this driver, and submitted the next one."""
    plane.rounds(2)
    late = plane.driver()
    plane.launcher.end(plane.submitted()[0], LaunchState.FAILED)
    plane.rounds(6)
    assert len(plane.submitted()) == 2
    plane.loop._submit(late)
    assert plane.launcher.stopped == [plane.submitted()[0]]


def test_installations_that_share_a_cluster_have_a_driver_each(tmp_path: Path) -> None:
    cluster = FakeLauncher()
    for name in ("a", "b"):
        plane = Driven(tmp_path / name, launcher=cluster)
        plane.rounds()
        plane.close()
    assert len(cluster.commands) == 2


def test_with_kuberay_the_driver_runs_while_there_is_work(tmp_path: Path) -> None:
    plane = Driven(tmp_path)
    changes = {"launcher": "kuberay", "prepare_workers": 3}
    settings = plane.context.settings.model_copy(update=changes)
    plane.loop = DriverLoop(
        replace(plane.context, settings=settings), plane.reconciler.wake_preparations
    )
    plane.rounds(3)
    assert plane.submitted() == []
    job = plane.post_dataset()
    plane.tick(2)
    plane.rounds(2)
    (name,) = plane.submitted()
    submission = plane.launcher.submissions[name]
    assert submission.ranks == 3
    assert list(submission.command)[-2:] == ["--idle-seconds", "300"]
    plane.client.post(f"/v1/jobs/{job}/cancel")
    plane.tick()
    plane.launcher.end(name, LaunchState.SUCCEEDED)
    plane.rounds(10)
    assert (plane.driver().failures, plane.driver().message) == (0, None)
    assert plane.submitted() == [name]
    plane.close()


def test_the_time_without_a_driver_is_measured(plane: Driven) -> None:
    def seconds() -> float | None:
        plane.clock.advance(10)
        name = "cmcl_service_no_driver_seconds"
        return plane.context.metrics.registry.get_sample_value(name)

    assert seconds() == 0
    plane.post_dataset()
    plane.tick(2)
    assert (seconds() or 0) >= 10
    plane.rounds(2)
    assert seconds() == 0
    plane.launcher.end(plane.submitted()[0], LaunchState.FAILED)
    plane.rounds()
    assert (seconds() or 0) >= 10
