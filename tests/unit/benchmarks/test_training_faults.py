"""Figures of the fault benchmark from its samples."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.faults.attempts import Job, Size
from benchmarks.faults.trial import ProgressLog
from benchmarks.training_faults import Outcome, markdown
from cmcl.contract.job import JobSpec, Phase, Progress
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.running import ProgressWriter
from cmcl.storage.uris import open_store

SIZE = Size(rows=64, epochs=2, batch_size=16, width=8)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(open_store(tmp_path.as_uri()), "faults", SIZE)


def see(watch: ProgressLog, phase: Phase, done: int = 0, resumed_at: int | None = None) -> float:
    """Report progress of the ranks; return the moment after it was sampled."""
    progress = Progress(
        phase=phase,
        updates_done=done,
        updates_total=100,
        resumed_at=resumed_at,
        at=datetime.now(UTC),
    )
    ProgressWriter(watch.job.store, watch.job.name, 1).write(progress)
    watch.sample(1)
    return time.monotonic()


def test_ranks_are_back_with_their_first_update_after_the_checkpoint(job: Job) -> None:
    watch = ProgressLog(job)
    see(watch, "training", 40)
    fault = see(watch, "training", 50)
    see(watch, "starting")
    see(watch, "training", 45, resumed_at=45)
    see(watch, "training", 46, resumed_at=45)
    resumed = watch.resumed_after(fault)
    assert resumed is not None
    assert (resumed.done, resumed.progress.resumed_at) == (46, 45)
    assert watch.done_before(fault) == 50


def test_ranks_that_went_on_did_not_resume(job: Job) -> None:
    watch = ProgressLog(job)
    fault = see(watch, "training", 50)
    for done in (51, 52):
        see(watch, "training", done)
    assert watch.resumed_after(fault) is None
    assert watch.longest_pause_after(fault) > 0
    assert watch.done_after(fault) == 1


def test_next_attempt_continues_from_the_newest_checkpoint(job: Job, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    job.prepare(tmp_path / "files")
    for updates in (9, 100):
        job.store.put(layout.run_checkpoint(job.name, 1, updates, "0" * 64), b"heads")
    job.next_attempt(2)
    job.next_attempt(3)
    keys = [layout.run_spec(job.name, attempt) for attempt in (1, 2, 3)]
    resumed_from = [read_document(job.store, key, JobSpec).resume_from for key in keys]
    newest = layout.run_checkpoint(job.name, 1, 100, "0" * 64)
    assert resumed_from == [None, newest, newest], (
        "an attempt without checkpoints passes on the one that it got"
    )


def outcome(ranks: int, distance: float | None) -> Outcome:
    return Outcome("a fault", 9.5, 9.0, 0, 50, 100, 45, 5, 1, ranks, distance)


@pytest.mark.parametrize(
    ("ranks", "distance", "is_same"),
    [(2, None, True), (1, 9e-6, True), (1, 2e-5, False), (2, 1e-9, False)],
)
def test_as_many_ranks_must_give_the_bits(
    ranks: int, distance: float | None, is_same: bool
) -> None:
    assert outcome(ranks, distance).is_same is is_same


def page_of(found: Outcome) -> str:
    derived = {"is_same": found.is_same, "came_in_time": found.came_in_time}
    return markdown(
        {
            "outcomes": [{**vars(found), **derived}],
            "size": vars(SIZE),
            "updates": 100,
            "seconds": 20.0,
            "checkpoint_seconds": 3,
            "peer_seconds": 15,
            "machine": {"cores": 2},
        }
    )


def test_a_training_that_was_over_before_its_fault_shows_nothing() -> None:
    late = replace(outcome(2, None), resumed=None)
    assert not late.came_in_time
    assert "**not tested**" in page_of(late)
    assert replace(late, updates_after=1).came_in_time
