"""Progress of a dataset: rows of units that are done and of those in work, with rate and time left."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from cmcl.contract.dataset import RejectedRow, Shard
from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.errors import InvalidDataset
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from tests.fakes.child_tasks import Order, work
from tests.fakes.preparation import FILE_MEMORY, Ground
from workers.prepare.plan import plan
from workers.prepare.progress import Cancelled, DatasetProgress, Watch
from workers.prepare.tasks import children, end_children, unit_record
from workers.prepare.units import (
    DatasetContext,
    DatasetSource,
    UnitRecord,
    UnitTask,
    sides_of,
)

ENCODERS = (
    EncoderSpec(name="image", kind="synthetic", takes="numbers", width=4, max_batch=64),
    EncoderSpec(name="text", kind="synthetic", takes="text", width=3, max_batch=16),
)
SPEC = ModelSpec.model_validate(
    {
        "width": 8,
        "modalities": {each.name: {"width": each.width, "encoder": each.name} for each in ENCODERS},
    }
)


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def progress(clock: Clock) -> DatasetProgress:
    return DatasetProgress("ds-1", 0, clock)


def record(rows: int, bad: int = 0) -> UnitRecord:
    shard = Shard(uri="file:///a", sha256="0" * 64, bytes=1, rows=rows - bad)
    rejected = tuple(
        RejectedRow(id=None, file="file:///b", row=row, place="a.jsonl line 8", reason="bad")
        for row in range(bad)
    )
    return UnitRecord(training=shard, rejected=rejected)


def figures(progress: DatasetProgress) -> tuple[int, int, float | None, float | None]:
    shown = progress.snapshot()
    return shown.rows_done, shown.rows_total, shown.rows_per_second, shown.eta_seconds


def test_before_the_first_row_there_is_no_rate(progress: DatasetProgress, clock: Clock) -> None:
    assert figures(progress) == (0, 0, None, None)
    progress.enter("encoding", rows=1024, units=1)
    clock.now += 10
    assert figures(progress) == (0, 1024, None, None)


def test_rows_of_units_in_work_count_with_those_that_are_done(
    progress: DatasetProgress, clock: Clock
) -> None:
    progress.enter("encoding", rows=1000, units=3)
    clock.now += 10
    progress.unit_in_work(0, 250)
    assert figures(progress) == (250, 1000, 25, 30)
    progress.unit_done(2, record(400, bad=10))
    progress.unit_in_work(1, 50)
    assert figures(progress)[:3] == (700, 1000, 70)
    assert progress.snapshot().bad_rows == 10
    progress.unit_done(0, record(300))
    progress.unit_done(1, record(300))
    assert figures(progress) == (1000, 1000, 100, 0)


def test_a_unit_that_begins_again_lowers_nothing(progress: DatasetProgress) -> None:
    """Repeated failures at the same row must not count as progress."""
    progress.enter("encoding", rows=100, units=1)
    shown = []
    for rows in (10, 60, 5, 60, 61):
        progress.unit_in_work(0, rows)
        shown.append(figures(progress)[0])
    assert shown == [10, 60, 60, 60, 61]


def test_without_a_total_units_give_the_time_left_and_count_again_when_they_are_read_again(
    progress: DatasetProgress, clock: Clock
) -> None:
    progress.enter("reading", units=4)
    kept = {3: record(10)}
    progress.unit_done(3, kept[3])
    clock.now += 5
    assert figures(progress) == (10, 0, 2, 15)
    progress.unit_done(1, record(20))
    progress.restart(kept)
    assert figures(progress)[0] == 10
    progress.unit_done(1, record(15))
    assert figures(progress)[0] == 25


@pytest.mark.parametrize(
    "report",
    [
        lambda progress: progress.unit_in_work(0, 1),
        lambda progress: progress.unit_done(0, record(1)),
        lambda progress: progress.enter("finishing"),
    ],
)
def test_a_note_disappears_with_the_next_progress(
    progress: DatasetProgress, report: Callable[[DatasetProgress], None]
) -> None:
    progress.enter("encoding", rows=2, units=2)
    progress.check("waits for a GPU")
    assert progress.snapshot().note == "waits for a GPU"
    report(progress)
    assert progress.snapshot().note is None


def test_a_cancelled_dataset_stops_at_its_next_check(progress: DatasetProgress) -> None:
    progress.check("")
    progress.cancel()
    with pytest.raises(Cancelled):
        progress.check("")


def context_of(ground: Ground) -> DatasetContext:
    pair = ModalityPair(first="image", second="text")
    source = DatasetSource(
        files=(ground.ref("raw.jsonl"),),
        sides=sides_of(pair, SPEC, {spec.name: spec for spec in ENCODERS}),
        allowed_prefixes=(ground.folder.resolve().as_uri(),),
    )
    return DatasetContext(
        store=ground.store.uri,
        dataset="ds-0123456789ab",
        request=0,
        owner="ann",
        source=source,
        files_to_train=1,
        share=None,
        leaves_out=False,
        file_memory=FILE_MEMORY,
    )


def test_a_unit_whose_request_was_removed_is_cancelled_and_its_file_is_not_refused(
    tmp_path: Path,
) -> None:
    """Its child is killed, which looks like a crash."""
    ground = Ground(LocalStore(tmp_path / "store"), tmp_path / "theirs", SPEC)
    request = ground.request("raw.jsonl")
    with children(FILE_MEMORY).borrow("ann") as child:
        with pytest.raises(InvalidDataset), Watch(context_of(ground), child):
            raise InvalidDataset("it is damaged")
        ground.store.delete(layout.preparation_request(request.dataset))
        with pytest.raises(Cancelled), Watch(context_of(ground), child):
            child.collect(work, Order(does="sleep"))
    end_children()


def test_rows_of_a_unit_are_counted_while_it_is_encoded(tmp_path: Path) -> None:
    """Both sides count alike. There are 40 captions, each of which is encoded once."""
    ground = Ground(LocalStore(tmp_path / "store"), tmp_path / "theirs", SPEC)
    rows: list[dict[str, object]] = [
        {"id": f"r{row}", "image": [row, 0.5], "text": f"caption {row % 40}"} for row in range(300)
    ]
    rows[9]["image"] = None
    (ground.folder / "raw.jsonl").write_text("\n".join(map(json.dumps, rows)))
    encoders = {spec.name: spec for spec in ENCODERS}
    context = context_of(ground)
    counts: list[int] = []
    with ExitStack() as stack:
        child = stack.enter_context(children(FILE_MEMORY).borrow("ann"))
        leased = [
            stack.enter_context(ground.cluster.lease(encoders[name], 1, lambda _: None))
            for name in encoders
        ]
        (unit,) = plan(child, context.source).units
        context = replace(context, encoders=(leased[0], leased[1]))
        counts += unit_record(context, UnitTask(0, 0, unit), child, lambda: None)
    assert counts == sorted(counts)
    # Places are encoded while others are read; one row was rejected before. Texts come at the end.
    assert counts[0] == 1
    assert 1 + 64 // 2 in counts
    assert 1 + 299 // 2 in counts
    assert counts[-1] == 300
    end_children()
