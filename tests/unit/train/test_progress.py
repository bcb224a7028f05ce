"""Progress: written at changes, repeated as a heartbeat, and never an obstacle for training."""

import threading
from pathlib import Path

import pytest
import torch

from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.job import JobSpec, Progress
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import retry_unavailable
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.running import newest_progress
from tests.fakes.waiting import until
from workers.train.distributed import SINGLE_PROCESS, World
from workers.train.progress import Reporter
from workers.train.run import UpdateDone, UpdateStats

SHARD = Shard(uri="file:///x.parquet", sha256="0" * 64, bytes=1, rows=1)
SPEC = JobSpec(
    job="job-1",
    attempt=1,
    model="m",
    version=1,
    parent=None,
    spec=ModelSpec(width=4, modalities={"image": 3, "text": 2}),
    dataset=DatasetManifest(
        dataset="ds-1",
        model="m",
        name="one",
        pair=ModalityPair(first="image", second="text"),
        shards=(SHARD,),
    ),
)
SECONDS = 120.0


class NotedStore(FlakyStore):
    """Signals each write, also a failing one."""

    def __init__(self, root: Path) -> None:
        super().__init__(LocalStore(root))
        self.written = threading.Semaphore(0)

    def put(self, key: str, data: bytes) -> None:
        try:
            super().put(key, data)
        finally:
            self.written.release()

    def wait_for_writes(self, count: int) -> None:
        for _ in range(count):
            assert self.written.acquire(timeout=SECONDS), "nothing was written"

    def progress(self) -> Progress:
        found = newest_progress(self, "job-1", 1)
        assert found is not None
        return found


@pytest.fixture
def store(tmp_path: Path) -> NotedStore:
    return NotedStore(tmp_path)


def test_the_heartbeat_continues_while_nothing_changes(store: NotedStore) -> None:
    with Reporter(store, SPEC, SINGLE_PROCESS, heartbeat=0.01) as reporter:
        reporter.enter("training")
        reporter.update_done(UpdateDone(8, 8, torch.tensor(0.5)))
        store.wait_for_writes(2)
        before = store.progress()
        store.wait_for_writes(2)
        after = store.progress()
    assert after.at > before.at
    assert (after.phase, after.updates_done, after.loss) == ("training", 8, 0.5)


def test_progress_has_the_seconds_of_every_phase_so_far(store: NotedStore) -> None:
    with Reporter(store, SPEC, SINGLE_PROCESS, heartbeat=0.01) as reporter:
        reporter.enter("reading")
        reporter.enter("training")
        store.wait_for_writes(3)
        before = store.progress()
        store.wait_for_writes(2)
        after = store.progress()
    assert list(after.seconds) == ["starting", "reading", "training"]
    assert after.seconds["training"] > before.seconds["training"]
    passed = (after.at - before.at).total_seconds()
    grown = sum(after.seconds.values()) - sum(before.seconds.values())
    assert grown == pytest.approx(passed, abs=0.1)


def test_the_last_progress_is_written_before_the_end_is_shown(store: NotedStore) -> None:
    """Once its job has moved on, no progress of an attempt is stored."""
    with Reporter(store, SPEC, SINGLE_PROCESS) as reporter:
        reporter.enter("writing")
        reporter.done()
        written = list(store.calls)
    (ended,) = (place for place, key in enumerate(written) if key.endswith(layout.ENDED))
    assert any("_done_" in key for key in written[:ended])
    assert store.calls == written
    assert list(store.progress().seconds) == ["starting", "writing"]


def test_the_first_update_is_reported_at_once(store: NotedStore) -> None:
    """Progress shows that training runs, and how long it took to start."""
    reporter = Reporter(store, SPEC, SINGLE_PROCESS)
    assert not reporter.should_log()
    reporter.enter("training")
    assert reporter.should_log()
    stats = UpdateStats(gradient_norm=1.0, removed_share=0.5, drift=None)
    reporter.update_done(UpdateDone(1, 8, torch.tensor(0.5), stats))
    assert not reporter.should_log()


def test_the_heartbeat_stops_with_the_job(store: NotedStore) -> None:
    with Reporter(store, SPEC, SINGLE_PROCESS, heartbeat=0.01) as reporter:
        reporter.enter("done")
        store.wait_for_writes(2)
    assert [each for each in threading.enumerate() if each.name == "heartbeat"] == []
    assert store.progress().phase == "done"


def test_the_heartbeat_stops_when_the_job_fails(store: NotedStore) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_while_reporting(store)
    assert [each for each in threading.enumerate() if each.name == "heartbeat"] == []


def fail_while_reporting(store: NotedStore) -> None:
    with Reporter(store, SPEC, SINGLE_PROCESS, heartbeat=0.01):
        store.wait_for_writes(1)
        raise ZeroDivisionError


def test_store_that_is_down_ends_neither_training_nor_the_heartbeat(store: NotedStore) -> None:
    with Reporter(store, SPEC, SINGLE_PROCESS, heartbeat=0.01) as reporter:
        reporter.enter("training")
        store.wait_for_writes(1)
        store.broken = layout.running()
        store.wait_for_writes(3)
        store.broken = None
        store.wait_for_writes(2)
    assert store.progress().phase == "training"


def test_while_a_call_is_repeated_progress_has_what_the_store_answered(store: NotedStore) -> None:
    notes = []

    def wait_for_a_note(_: float) -> None:
        until(lambda: store.progress().note is not None)
        notes.append(store.progress().note)
        store.broken = None

    with Reporter(store, SPEC, SINGLE_PROCESS, heartbeat=0.01) as reporter:
        reporter.enter("writing")
        store.wait_for_writes(1)
        store.broken = "blobs/"
        retry_unavailable(lambda: store.put("blobs/x", b""), sleep=wait_for_a_note)
    expected = "it waits for the object storage: 'blobs/x': the connection is broken (on purpose)"
    assert notes == [expected]
    assert store.progress().note is None


def test_store_that_hangs_holds_no_update(store: NotedStore) -> None:
    """A silent connection loss is detected after minutes, when other ranks would have timed out."""
    hangs, reported = threading.Event(), threading.Event()

    class HangingStore(NotedStore):
        def put(self, key: str, data: bytes) -> None:
            reported.set()
            assert hangs.wait(SECONDS), "training waited for the store"
            super().put(key, data)

    hanging = HangingStore(Path(store.uri.removeprefix("file://")))
    with Reporter(hanging, SPEC, SINGLE_PROCESS, heartbeat=0.01) as reporter:
        reporter.enter("training")
        assert reported.wait(SECONDS)
        for number in range(1, 9):
            reporter.update_done(UpdateDone(number, 8, torch.tensor(0.5)))
        hangs.set()
    assert hanging.progress().updates_done == 8


def test_ranks_that_do_not_lead_write_nothing(store: NotedStore) -> None:
    with Reporter(store, SPEC, World(1, 2), heartbeat=0.001) as reporter:
        reporter.enter("training")
    assert store.calls == []
