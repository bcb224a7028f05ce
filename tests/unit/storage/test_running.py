"""Progress of running attempts in names of keys: one listing shows all of them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmcl.contract.errors import StorageUnavailable
from cmcl.contract.job import Phase, Progress
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from cmcl.storage.running import (
    ProgressWriter,
    decode_progress,
    encode_progress,
    forget_running,
    mark_ended,
    read_running,
)
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.running import newest_progress

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
COUNT = st.integers(0, 10**12)
# A loss is a float32, and so is what is derived from it.
FIGURE = st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.fixture
def store(tmp_path: Path) -> FlakyStore:
    return FlakyStore(LocalStore(tmp_path))


def _progress(updates: int, note: str | None = None) -> Progress:
    return Progress(phase="training", updates_done=updates, note=note, at=AT)


@given(
    st.builds(
        Progress,
        phase=st.sampled_from(Phase.__args__),  # type: ignore[attr-defined]
        updates_done=COUNT,
        updates_total=COUNT,
        rows_done=COUNT,
        rows_total=COUNT,
        ranks=st.none() | st.integers(1, 10**6),
        resumed_at=st.none() | COUNT,
        loss=FIGURE,
        rows_per_second=FIGURE,
        gradient_norm=FIGURE,
        removed_share=FIGURE,
        drift=FIGURE,
        eta_seconds=FIGURE,
        note=st.none(),
        seconds=st.dictionaries(
            st.sampled_from([each for each in Phase.__args__ if each not in ("waiting", "done")]),  # type: ignore[attr-defined]
            st.integers(0, 10**10).map(lambda milliseconds: milliseconds / 1000),
        ),
        at=st.integers(-(10**9), 10**10).map(lambda seconds: AT + timedelta(microseconds=seconds)),
    ),
    st.integers(1, 99_999_999),
)
def test_a_name_has_all_figures_and_fits_a_file_name(progress: Progress, sequence: int) -> None:
    name = encode_progress(sequence, progress)
    found = decode_progress(name)
    figures = ("loss", "rows_per_second", "gradient_norm", "removed_share", "drift", "eta_seconds")
    for figure in figures:
        expected = getattr(progress, figure)
        assert getattr(found, figure) == (
            None if expected is None else pytest.approx(expected, rel=1e-6)
        )
    exact = dict.fromkeys(figures)
    assert found.model_copy(update=exact) == progress.model_copy(update=exact)
    # With the id of a submission before it, within the 255 bytes of a file name.
    assert len(name) <= 230
    assert all(letter.isalnum() or letter in "_-." for letter in name)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_does_not_hide_the_rest(loss: float) -> None:
    found = decode_progress(encode_progress(1, _progress(3).model_copy(update={"loss": loss})))
    assert found.updates_done == 3
    assert found.loss is None


def test_the_newest_progress_of_each_attempt_is_shown(store: FlakyStore) -> None:
    writers = {job: ProgressWriter(store, job, 1) for job in ("job-1", "job-2")}
    for updates in range(1, 13):
        for job, writer in writers.items():
            writer.write(_progress(updates if job == "job-1" else 2 * updates))
    mark_ended(store, "job-2", 1)
    store.calls.clear()
    shown = read_running(store)
    assert store.calls == [layout.running()]
    assert {name: each.has_ended for name, each in shown.items()} == {
        "job-1-a1": False,
        "job-2-a1": True,
    }
    found = [each.progress() for each in shown.values()]
    assert [each.updates_done for each in found if each is not None] == [12, 24]
    assert len(list(store.keys(layout.running()))) == 3


def test_another_process_of_the_attempt_continues_its_numbers(store: FlakyStore) -> None:
    ProgressWriter(store, "job-1", 1).write(_progress(1, note="waits for ranks"))
    ProgressWriter(store, "job-1", 1).write(_progress(2))
    assert newest_progress(store, "job-1", 1) == _progress(2)
    assert len(list(store.keys(layout.running()))) == 1


def test_attempts_whose_ids_begin_alike_are_told_apart(store: FlakyStore) -> None:
    for attempt in (1, 11):
        ProgressWriter(store, "job-1", attempt).write(_progress(attempt))
    forget_running(store, "job-1-a1")
    assert set(read_running(store)) == {"job-1-a11"}


def test_a_writer_that_could_not_delete_does_so_later(store: FlakyStore) -> None:
    class Stuck(FlakyStore):
        deletes = False

        def delete(self, key: str) -> None:
            if not self.deletes:
                raise StorageUnavailable("on purpose")
            super().delete(key)

    stuck = Stuck(store)
    writer = ProgressWriter(stuck, "job-1", 1)
    writer.write(_progress(1))
    for updates in (2, 3):
        with pytest.raises(StorageUnavailable):
            writer.write(_progress(updates))
    stuck.deletes = True
    writer.write(_progress(4))
    assert newest_progress(store, "job-1", 1) == _progress(4)
    assert len(list(store.keys(layout.running()))) == 1


def test_a_name_of_another_release_shows_no_progress(store: FlakyStore) -> None:
    store.put(layout.running_file("job-1-a1", "00000001_of_another_release"), b"")
    (shown,) = read_running(store).values()
    assert shown.progress() is None
