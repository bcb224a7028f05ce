"""Validations beside the reconciler: a result belongs to one revision of a job."""

import errno
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest

from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.errors import InvalidDataset
from cmcl.contract.modality import ModalityPair
from service.datasets.validations import Ticket, Validate, Validations
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


def ticket(number: int, dataset: str = "ds", owner: str = "lab") -> Ticket:
    """A ticket of a revision."""
    return Ticket(dataset, number, owner)


def known(_: Validate) -> DatasetManifest:
    """Work that reads nothing."""
    return MANIFEST


class _Held(Executor):
    """Keeps the futures, for the test to fulfil."""

    def __init__(self) -> None:
        self.futures: list[Future[DatasetManifest]] = []

    def submit(self, *_: object, **__: object) -> Future[DatasetManifest]:  # type: ignore[override]
        self.futures.append(Future())
        return self.futures[-1]


def test_the_result_for_an_earlier_revision_does_not_count() -> None:
    held = _Held()
    validations = Validations(held, lambda: None)
    assert validations.result(ticket(1), known) is None
    # Another replica took over with the same result; then the user repaired the file and retried.
    held.futures[0].set_exception(InvalidDataset("a row is broken"))
    assert validations.result(ticket(4), known) is None
    held.futures[1].set_result(MANIFEST)
    assert validations.result(ticket(4), known) == MANIFEST


def test_a_second_request_for_the_same_revision_starts_nothing() -> None:
    held = _Held()
    validations = Validations(held, lambda: None)
    for _ in range(3):
        assert validations.result(ticket(1), known) is None
    assert len(held.futures) == 1


def test_an_internal_error_fails_the_job_in_the_end(tmp_path: Path) -> None:
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
        assert validations.result(ticket(1, f"ds-{number}", "greedy"), known) is None
    assert len(held.futures) == 2
    other = ticket(1, "ds-other", "lab")
    assert validations.result(other, known) is None
    assert len(held.futures) == 3
    held.futures[2].set_result(MANIFEST)
    assert validations.result(other, known) == MANIFEST


def test_the_next_starts_when_one_ends_or_is_cancelled() -> None:
    held = _Held()
    woken: list[None] = []
    validations = Validations(held, lambda: woken.append(None))
    for number in range(4):
        validations.result(ticket(1, f"ds-{number}"), known)
    held.futures[0].set_result(MANIFEST)
    assert (len(held.futures), len(woken)) == (3, 1)
    validations.cancel("ds-1")
    assert len(held.futures) == 4
    validations.close()
    assert all(future.done() for future in held.futures)


def test_a_death_while_reading_leaves_its_place_free() -> None:
    class Crash(BaseException):
        """Of this process."""

    def dies(_: Validate) -> DatasetManifest:
        raise Crash

    validations = Validations(InlineExecutor(), lambda: None)
    for number in range(5):
        with pytest.raises(Crash):
            validations.result(ticket(number), dies)
    assert validations.result(ticket(9), known) == MANIFEST
