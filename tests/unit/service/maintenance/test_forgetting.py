"""What a cluster keeps of attempts goes when their files go, and not before."""

from service.launchers.port import LaunchState
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.maintenance.test_sweeping import DAY, fail, keys, sweep


def test_attempts_are_deleted_from_the_cluster_with_their_files(plane: ControlPlane) -> None:
    job = fail(plane)
    attempts = [f"{job}-a{attempt}" for attempt in range(1, 4)]
    plane.clock.advance(6 * DAY)
    sweep(plane)
    assert {plane.launcher.status(name).state for name in attempts} == {LaunchState.FAILED}
    plane.clock.advance(2 * DAY)
    sweep(plane)
    assert {plane.launcher.status(name).state for name in attempts} == {LaunchState.UNKNOWN}
    assert keys(plane, f"runs/{job}/") == []


def test_a_failed_deletion_on_the_cluster_is_retried_later(plane: ControlPlane) -> None:
    job = fail(plane)
    plane.clock.advance(8 * DAY)
    plane.launcher.is_down = True
    sweep(plane)
    plane.launcher.is_down = False
    assert plane.launcher.status(f"{job}-a3").state == LaunchState.FAILED
    sweep(plane)
    assert plane.launcher.status(f"{job}-a3").state == LaunchState.UNKNOWN
