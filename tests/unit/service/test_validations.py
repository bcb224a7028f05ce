"""Validations beside the reconciler: what was found belongs to one turn of a job, and to no other."""

import errno
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest

from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.errors import InvalidDataset
from cmcl.contract.modality import ModalityPair
from service.datasets.validations import Read, Turn, Validations
from service.states import FailureReason, JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.executor import InlineExecutor

MANIFEST = DatasetManifest(
    dataset="ds-0123456789ab",
    model="scenes",
    name="one",
    pair=ModalityPair(first="image", second="text"),
    shards=(Shard(uri="s3://bucket/x", sha256="0" * 64, bytes=1, rows=1),),
)


def turn(number: int, dataset: str = "ds", owner: str = "lab") -> Turn:
    """One of a dataset's turns."""
    return Turn(dataset, number, owner)


def known(_: Read) -> DatasetManifest:
    """Work that reads nothing."""
    return MANIFEST


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
    assert validations.outcome(turn(1), known) is None
    # Another service took over and said the same; then the user mended the file and tried again.
    held.futures[0].set_exception(InvalidDataset("a row is broken"))
    assert validations.outcome(turn(4), known) is None
    held.futures[1].set_result(MANIFEST)
    assert validations.outcome(turn(4), known) == MANIFEST


def test_asking_again_in_the_same_turn_begins_nothing() -> None:
    held = _Held()
    validations = Validations(held, lambda: None)
    for _ in range(3):
        assert validations.outcome(turn(1), known) is None
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


def test_one_owner_cannot_keep_the_others_waiting() -> None:
    held = _Held()
    validations = Validations(held, lambda: None)
    for number in range(5):
        assert validations.outcome(turn(1, f"ds-{number}", "greedy"), known) is None
    assert len(held.futures) == 2
    other = turn(1, "ds-other", "lab")
    assert validations.outcome(other, known) is None
    assert len(held.futures) == 3
    held.futures[2].set_result(MANIFEST)
    assert validations.outcome(other, known) == MANIFEST


def test_the_next_begins_when_one_ends_or_is_forgotten() -> None:
    held = _Held()
    rung: list[None] = []
    validations = Validations(held, lambda: rung.append(None))
    for number in range(4):
        validations.outcome(turn(1, f"ds-{number}"), known)
    held.futures[0].set_result(MANIFEST)
    assert (len(held.futures), len(rung)) == (3, 1)
    validations.forget("ds-1")
    assert len(held.futures) == 4
    validations.close()
    assert all(future.done() for future in held.futures)


def test_a_death_while_reading_leaves_its_place_free() -> None:
    class Death(BaseException):
        """Of this process."""

    def dies(_: Read) -> DatasetManifest:
        raise Death

    validations = Validations(InlineExecutor(), lambda: None)
    for number in range(5):
        with pytest.raises(Death):
            validations.outcome(turn(number), dies)
    assert validations.outcome(turn(9), known) == MANIFEST
