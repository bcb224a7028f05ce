"""The control plane dies at each moment in turn; another one finishes the job, exactly once."""

from pathlib import Path

import pytest

from service.control.reconcile import Reconciler
from service.states import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.mortal import Death, Lifeline
from tests.fakes.trainer import train
from workers.contract.version import LivePointer
from workers.storage.versions import read_live, read_version

# All contacts with database, store and launcher in the life of one job; a test below counts them.
MOMENTS = 43


@pytest.mark.parametrize("dies_at", range(1, MOMENTS + 1))
def test_a_death_at_any_moment_leaves_one_version(tmp_path: Path, dies_at: int) -> None:
    plane = ControlPlane(tmp_path)
    plane.create_model()
    job = plane.post_dataset(evaluation_shards=[plane.shard("held-out")])
    mortal = plane.mortal_reconciler(Lifeline(dies_at))
    with pytest.raises(Death):
        _carry_on(plane, mortal, job)
    successor = ControlPlane(tmp_path, plane.launcher, plane.clock)
    _carry_on(successor, successor.reconciler, job)
    _assert_published_once(successor, job)
    plane.close()
    successor.close()


def test_every_moment_of_a_life_was_tried(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    plane.create_model()
    job = plane.post_dataset(evaluation_shards=[plane.shard("held-out")])
    lifeline = Lifeline()
    _carry_on(plane, plane.mortal_reconciler(lifeline), job)
    assert lifeline.moments == MOMENTS
    plane.close()


def _carry_on(plane: ControlPlane, reconciler: Reconciler, job: str) -> None:
    """Until the version is live and mirrored; the cluster trains whatever it was given."""
    for _ in range(25):
        reconciler.tick()
        plane.clock.advance(1)
        for attempt in range(1, plane.job(job).attempt + 1):
            _train_once(plane, job, attempt)


def _train_once(plane: ControlPlane, job: str, attempt: int) -> None:
    manifest = f"runs/{job}/a{attempt}/candidate/manifest.json"
    if f"{job}-a{attempt}" in plane.launcher.commands and not any(plane.store.keys(manifest)):
        train(plane.store, job, attempt)


def _assert_published_once(plane: ControlPlane, job: str) -> None:
    assert plane.job(job).state == JobState.PUBLISHED
    (version,) = plane.versions()
    assert version.stored_at is not None
    assert read_version(plane.store, "scenes", 1) == version.manifest
    assert read_live(plane.store, "scenes") == LivePointer(generation=1, version=1)
    assert plane.model().mirrored_generation == 1
    assert list(plane.launcher.commands) == [f"{job}-a1"]
