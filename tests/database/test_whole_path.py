"""A dataset from POST to version, with crashes of the control plane, on both databases."""

from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from cmcl.contract.api.jobs import JobState
from service.core.principal import LOCAL
from service.registry.combining import Requested, request_unlearning
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


@pytest.mark.parametrize("dies_at", range(2, 41, 12))
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


def test_two_requests_at_once_to_unlearn_a_dataset_make_one_job(
    tmp_path: Path, database_url: str
) -> None:
    plane = ControlPlane(tmp_path, database_url=database_url)
    plane.create_model()
    for name in ("one", "two"):
        plane.run_to_end(plane.post_dataset(name))
    dataset = plane.versions()[0].manifest.dataset or ""
    database, now = plane.context.database, plane.clock()

    def second() -> Requested:
        with database.write() as connection:
            return request_unlearning(connection, dataset, None, LOCAL, now)

    with ThreadPoolExecutor(1) as thread:
        with database.write() as connection:
            first = request_unlearning(connection, dataset, None, LOCAL, now)
            found = thread.submit(second)
            # Until it has ended or waits for this transaction.
            wait([found], 1.0)
        assert (first.is_new, found.result(60).is_new) == (True, False)
        assert found.result().job.id == first.job.id
    plane.close()
