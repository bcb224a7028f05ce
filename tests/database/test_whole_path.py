"""A dataset from POST to version, with crashes of the control plane, on both databases."""

from pathlib import Path

import pytest

from service.states import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.crashes import Crash, FaultAtMoment


def test_datasets_become_versions(tmp_path: Path, database_url: str) -> None:
    plane = ControlPlane(tmp_path, database_url=database_url)
    plane.create_model()
    for name in ("one", "two"):
        assert plane.run_to_end(plane.post_dataset(name)).state == JobState.PUBLISHED
    assert plane.client.put("/v1/models/scenes/live", json={"version": 1}).status_code == 200
    plane.tick()
    assert plane.answering() == (3, 1)
    plane.close()


@pytest.mark.parametrize("dies_at", range(2, 41, 6))
def test_a_death_leaves_one_version(tmp_path: Path, database_url: str, dies_at: int) -> None:
    plane = ControlPlane(tmp_path, database_url=database_url)
    plane.create_model()
    job = plane.post_dataset()
    healthy = plane.reconciler
    plane.reconciler = plane.crashing_reconciler(FaultAtMoment(dies_at))
    with pytest.raises(Crash):
        plane.run_to_end(job)
    plane.reconciler = healthy
    plane.run_to_end(job)
    assert [version.job for version in plane.versions()] == [job]
    assert plane.answering() == (1, 1)
    plane.close()
