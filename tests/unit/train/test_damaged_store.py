"""Damage of earlier datasets in the store is never reported as an error of the new dataset."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cmcl.contract.errors import InvalidDataset, StoreDamaged
from cmcl.contract.job import Failure, VersionRef
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.local import LocalStore
from cmcl.storage.versions import publish_manifest, read_candidate, read_version
from tests.fakes.flaky_store import FlakyStore
from tests.unit.train.test_job import STREAM, prepare_job, run
from workers.model.artifact import save_memory
from workers.train import versions
from workers.train.versions import read_parent, read_past_datasets


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one version."""
    folder = tmp_path_factory.mktemp("first")
    store = LocalStore(folder / "store")
    run(store, prepare_job(store, folder, STREAM.datasets[0]))
    publish_manifest(store, read_candidate(store, "job-1", 1))
    return folder / "store"


@pytest.fixture
def store(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """A copy of it, for a process that has written no version."""
    monkeypatch.setattr(versions, "_kept", versions._Kept())
    return LocalStore(Path(shutil.copytree(first, tmp_path / "store")))


def removed(store: LocalStore, key: str) -> None:
    store.delete(key)


def altered(store: LocalStore, key: str) -> None:
    data = store.read(key)
    store.put(key, data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("damage", [removed, altered])
@pytest.mark.parametrize("name", ["moments of ds-1", layout.HEADS])
def test_damage_to_earlier_datasets_is_not_the_new_ones_fault(
    store: LocalStore, tmp_path: Path, name: str, damage: Callable[[LocalStore, str], None]
) -> None:
    key = layout.blob(read_version(store, "m", 1).own[name].sha256)
    damage(store, key)
    job = prepare_job(store, tmp_path, STREAM.datasets[1], version=2)
    with pytest.raises(StoreDamaged):
        run(store, job)
    failure = read_document(store, layout.run_failure("job-2", 1), Failure)
    assert failure.reason == "store_damaged"
    assert key in failure.message
    assert "restore that object from a backup" in failure.message


def test_lost_held_out_rows_of_an_earlier_dataset_are_reported_without_losing_the_version(
    store: LocalStore, tmp_path: Path
) -> None:
    manifest = layout.dataset_manifest("ds-1")
    text = store.read(manifest).replace(b"fashion_vt.test", b"fashion_vt.gone")
    store.put(manifest, text)
    run(store, prepare_job(store, tmp_path, STREAM.datasets[1], version=2))
    report = read_candidate(store, "job-2", 1).report
    assert set(report.evaluation) == {"ds-2"}
    assert set(report.not_evaluated) == {"ds-1"}
    assert "there is no such object" in report.not_evaluated["ds-1"]
    assert set(report.drift) == {"ds-1"}, "the certificate needs no rows"


def test_lost_held_out_rows_of_the_new_dataset_are_its_own_fault(
    store: LocalStore, tmp_path: Path
) -> None:
    job = prepare_job(store, tmp_path, STREAM.datasets[1], version=2)
    (shard,) = job.learns.evaluation_shards
    gone = shard.model_copy(update={"uri": f"{shard.uri}.gone"})
    dataset = job.learns.model_copy(update={"evaluation_shards": (gone,)})
    bad = job.model_copy(update={"dataset": dataset})
    store.put(layout.run_spec("job-2", 1), bad.model_dump_json().encode())
    with pytest.raises(InvalidDataset):
        run(store, bad)


@pytest.mark.parametrize(("room", "times"), [(0, 2), (1 << 30, 1)])
def test_earlier_datasets_are_read_when_needed_and_kept_where_there_is_room(
    store: LocalStore, tmp_path: Path, room: int, times: int
) -> None:
    """So that memory does not grow with their number."""
    job = prepare_job(store, tmp_path, STREAM.datasets[1], version=2)
    noted = FlakyStore(store)
    parent = read_parent(noted, job)
    moments = layout.blob(parent.learned[0].moments.sha256)
    # The first dataset of a pair has the moments that its version has pooled.
    assert noted.calls.count(moments) == 1
    noted.calls.clear()
    (earlier,) = read_past_datasets(noted, parent, parent.learned, room)
    assert noted.calls == []
    earlier.read()
    earlier.read()
    assert noted.calls.count(moments) == times


@pytest.mark.parametrize(("parent", "times"), [(1, 1), (2, 2)])
def test_heads_of_the_parent_are_read_once(
    store: LocalStore, tmp_path: Path, parent: int, times: int
) -> None:
    """Those of the version before it are read beside them, and checked."""
    job = prepare_job(store, tmp_path, STREAM.datasets[1], version=2)
    noted = FlakyStore(store)
    known = replace(read_parent(noted, job), ref=VersionRef(model="m", version=parent))
    (earlier,) = read_past_datasets(noted, known, known.learned)
    then = earlier.read().then
    heads = layout.blob(known.files[layout.HEADS].sha256)
    assert noted.calls.count(heads) == times
    assert then.first_EI.equal(known.model_state.heads.weights[earlier.pair.first])


def pooled_blobs(store: LocalStore, version: int) -> list[str]:
    files = read_version(store, "m", version).files
    return [layout.blob(entry.sha256) for name, entry in files.items() if layout.pair_of(name)]


def test_moments_that_this_process_has_just_written_are_not_read_again(
    store: LocalStore, tmp_path: Path
) -> None:
    run(store, prepare_job(store, tmp_path, STREAM.datasets[1], version=2))
    publish_manifest(store, read_candidate(store, "job-2", 1))
    noted = FlakyStore(store)
    third = prepare_job(store, tmp_path, STREAM.datasets[2], version=3)
    kept = read_parent(noted, third).model_state.memory
    assert not set(pooled_blobs(store, 2)) & set(noted.calls)
    versions._kept.files = {}
    again = read_parent(noted, third).model_state.memory
    assert set(pooled_blobs(store, 2)) <= set(noted.calls)
    assert save_memory(kept) == save_memory(again)


def test_ranks_that_do_not_solve_read_no_pooled_moments(store: LocalStore, tmp_path: Path) -> None:
    noted = FlakyStore(store)
    job = prepare_job(store, tmp_path, STREAM.datasets[1], version=2)
    memory = read_parent(noted, job, with_moments=False).model_state.memory
    assert not set(pooled_blobs(store, 1)) & set(noted.calls)
    assert memory.datasets == read_parent(noted, job).model_state.memory.datasets
