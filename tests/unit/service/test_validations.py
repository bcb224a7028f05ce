"""Validations beside the reconciler: what was found belongs to one turn of a job, and to no other."""

import errno
from concurrent.futures import Executor, Future
from pathlib import Path

from service.control.validate import Validations
from service.states import FailureReason, JobState
from tests.fakes.control_plane import ControlPlane
from workers.contract.dataset import DatasetManifest, Shard
from workers.contract.errors import InvalidDataset
from workers.contract.modality import ModalityPair

MANIFEST = DatasetManifest(
    dataset="ds-0123456789ab",
    model="scenes",
    name="one",
    pair=ModalityPair(first="image", second="text"),
    shards=(Shard(uri="s3://bucket/x", sha256="0" * 64, bytes=1, rows=1),),
)


class _Held(Executor):
    """Keeps the futures, for the test to fulfil."""

    def __init__(self) -> None:
        self.futures: list[Future[DatasetManifest]] = []

    def submit(self, *_: object, **__: object) -> Future[DatasetManifest]:  # type: ignore[override]
        self.futures.append(Future())
        return self.futures[-1]


def test_what_an_earlier_turn_found_is_not_believed() -> None:
    held = _Held()
    validations = Validations(held, lambda: None)
    assert validations.outcome("ds", 1, lambda: MANIFEST) is None
    # Another service took over and said the same; then the user mended the file and tried again.
    held.futures[0].set_exception(InvalidDataset("a row is broken"))
    assert validations.outcome("ds", 4, lambda: MANIFEST) is None
    held.futures[1].set_result(MANIFEST)
    assert validations.outcome("ds", 4, lambda: MANIFEST) == MANIFEST


def test_asking_again_in_the_same_turn_begins_nothing() -> None:
    held = _Held()
    validations = Validations(held, lambda: None)
    for _ in range(3):
        assert validations.outcome("ds", 1, lambda: MANIFEST) is None
    assert len(held.futures) == 1


def test_a_mistake_of_ours_does_not_hold_up_a_model_for_ever(tmp_path: Path) -> None:
    held = _Held()
    plane = ControlPlane(tmp_path, executor=held)
    plane.create_model()
    job = plane.post_dataset()
    plane.tick_to(job, JobState.VALIDATING)
    for _ in range(2):
        plane.tick()
        assert plane.job(job).state == JobState.VALIDATING
        held.futures[-1].set_exception(OSError(errno.ENOSPC, "no space left"))
        plane.clock.advance(400)
        plane.tick()
    found = plane.job(job)
    assert found.reason == FailureReason.STORAGE_UNAVAILABLE
    assert "OSError" in (found.message or "")
    plane.close()


def test_a_moment_without_store_ends_no_long_validation(tmp_path: Path) -> None:
    held = _Held()
    plane = ControlPlane(tmp_path, executor=held)
    plane.create_model()
    job = plane.post_dataset()
    plane.tick_to(job, JobState.VALIDATING)
    plane.tick()
    plane.clock.advance(3600)
    plane.store.broken = ""
    plane.tick()
    plane.store.broken = None
    assert plane.job(job).state == JobState.VALIDATING
    assert len(held.futures) == 1
    plane.close()
