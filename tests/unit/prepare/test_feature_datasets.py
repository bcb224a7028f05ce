"""Datasets of feature files: checked, converted and split in the child; bad rows are refused or left out."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmcl.contract.dataset import RejectedRow, Shard
from cmcl.contract.errors import InvalidVersion, StorageUnavailable
from cmcl.contract.job import StageReport
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import PrepareReport
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.local import LocalStore
from tests.fakes.feature_shards import feature_table, write_shard
from tests.fakes.preparation import Ground
from workers.prepare import dataset
from workers.prepare.dataset import PreparationFailed
from workers.prepare.tasks import end_children
from workers.prepare.units import UnitTask

SPEC = ModelSpec.model_validate(
    {"width": 8, "modalities": {"image": 4, "text": 3}, "training": {"batch_size": 8}}
)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(LocalStore(tmp_path / "store"), tmp_path / "theirs", SPEC)


@pytest.fixture(scope="module", autouse=True)
def closed_children() -> Iterator[None]:
    yield
    end_children()


def table_of(ground: Ground, shard: Shard) -> pa.Table:
    store = ground.store
    data = store.read(shard.uri.removeprefix(f"{store.uri}/"))
    return pq.read_table(io.BytesIO(data))


def ids_of(ground: Ground, shards: tuple[Shard, ...]) -> list[str]:
    return [id_ for shard in shards for id_ in table_of(ground, shard)["id"].to_pylist()]


def damaged(table: pa.Table, row: int, value: float) -> pa.Table:
    """The table with one number of `feature_a` replaced."""
    values = table["feature_a"].combine_chunks().flatten().to_numpy().copy()
    values[4 * row] = value
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), 4)
    return table.set_column(table.column_names.index("feature_a"), "feature_a", column)


def write_lists(path: Path, rows: list[tuple[str, list[float | None] | None]]) -> None:
    """A table as pandas writes it: lists of any length."""
    pq.write_table(
        pa.table(
            {
                "id": [id_ for id_, _ in rows],
                "feature_a": pa.array([values for _, values in rows], pa.list_(pa.float64())),
                "feature_b": pa.array([[1.0, 2.0, 3.0] for _ in rows], pa.list_(pa.float64())),
            }
        ),
        path,
    )


def test_a_traced_preparation_reports_its_stages(ground: Ground) -> None:
    write_shard(ground.folder / "a.parquet", feature_table(16))
    ground.prepare(ground.request("a.parquet", traceparent="00-trace"))
    report = read_document(
        ground.store, layout.preparation_file("ds-0123456789ab", "stages"), StageReport
    )
    assert report.traceparent == "00-trace"
    names = [stage.name for stage in report.stages]
    assert names == ["waiting", "planning", "reading", "finishing"]


def test_named_held_out_files_are_copied_before_those_of_a_share(ground: Ground) -> None:
    write_shard(ground.folder / "a.parquet", feature_table(60, prefix="a", seed=7))
    write_shard(ground.folder / "held.parquet", feature_table(5, prefix="held", seed=8))
    held = (ground.ref("held.parquet"),)
    request = ground.request("a.parquet", evaluation_shards=held, evaluation_share=0.25)
    manifest = ground.prepare(request)
    names = [Path(shard.uri).name.rsplit("-", 1)[0] for shard in manifest.evaluation_shards]
    assert names == ["evaluation-0", "evaluation-1"]
    learned, kept = (ids_of(ground, p) for p in (manifest.shards, manifest.evaluation_shards))
    assert kept[:5] == [f"held-{row}" for row in range(5)]
    assert not set(learned) & set(kept)
    assert len(learned) + len(kept) == 65


def test_every_row_of_a_dataset_that_is_measured_only_is_held_out(ground: Ground) -> None:
    write_shard(ground.folder / "a.parquet", feature_table(5, prefix="a", seed=7))
    write_shard(ground.folder / "b.parquet", feature_table(4, prefix="b", seed=8))
    manifest = ground.prepare(ground.request("a.parquet", "b.parquet", evaluate_only=True))
    assert (manifest.evaluate_only, manifest.shards, manifest.rows) == (True, (), 0)
    names = [Path(shard.uri).name.rsplit("-", 1)[0] for shard in manifest.evaluation_shards]
    assert names == ["evaluation-0", "evaluation-1"]
    expected = [*(f"a-{row}" for row in range(5)), *(f"b-{row}" for row in range(4))]
    assert ids_of(ground, manifest.evaluation_shards) == expected


def test_fewer_rows_than_a_batch_are_refused_where_rows_are_trained_on(ground: Ground) -> None:
    write_shard(ground.folder / "a.parquet", feature_table(12, seed=5))
    request = ground.request("a.parquet", evaluation_share=0.6)
    ground.prepare(request)
    trained = request.spec.model_copy(update={"policy": "preserve"})
    with pytest.raises(
        PreparationFailed, match="rows together left to train on, and at least 8 are needed"
    ):
        ground.prepare(request.model_copy(update={"spec": trained, "dataset": "other"}))


@pytest.mark.parametrize(
    ("share", "message"),
    [(0.001, r"0.1 % of the rows are to be held out, and 0 of 12 would be")],
)
def test_a_share_that_does_not_fit_is_refused(ground: Ground, share: float, message: str) -> None:
    write_shard(ground.folder / "a.parquet", feature_table(12, seed=5))
    with pytest.raises(PreparationFailed, match=message):
        ground.prepare(ground.request("a.parquet", evaluation_share=share))


def test_any_bad_row_refuses_the_dataset_unless_rows_may_be_left_out(ground: Ground) -> None:
    for name, row in (("a", 3), ("b", 5)):
        table = damaged(feature_table(16, prefix=name), row, np.nan)
        write_shard(ground.folder / f"{name}.parquet", table)
    # The first file's, for any order of reading.
    message = r"a\.parquet: column 'feature_a' has NaN or infinity in row 3$"
    with pytest.raises(PreparationFailed, match=message) as caught:
        ground.prepare(ground.request("a.parquet", "b.parquet"))
    assert caught.value.reason == "invalid_dataset"


def test_bad_rows_are_left_out_and_listed(ground: Ground) -> None:
    table = damaged(feature_table(16, prefix="a"), 3, np.inf)
    ref = write_shard(ground.folder / "a.parquet", damaged(table, 9, np.nan))
    write_shard(ground.folder / "b.parquet", feature_table(16, prefix="b"))
    manifest = ground.prepare(ground.request("a.parquet", "b.parquet", max_bad_share=0.1))
    assert ids_of(ground, manifest.shards[:1]) == [f"a-{n}" for n in range(16) if n not in (3, 9)]
    assert manifest.shards[1].source is None
    assert manifest.rejected is not None
    first = RejectedRow(
        id="a-3",
        file=ref.uri,
        row=3,
        place="a.parquet row 4",
        reason="column 'feature_a' has NaN or infinity in row 3",
    )
    assert manifest.rejected.first[0] == first
    lines = ground.store.read(layout.rejected_rows(manifest.dataset)).splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a-3", "a-9"]
    assert manifest.rejected.rows == 2


def test_more_bad_rows_than_permitted_quarantine_the_dataset(ground: Ground) -> None:
    write_shard(ground.folder / "a.parquet", damaged(feature_table(16), 3, np.nan))
    with pytest.raises(PreparationFailed, match="1 of 16 rows cannot be used") as caught:
        ground.prepare(ground.request("a.parquet", max_bad_share=0.05))
    assert [row.row for row in caught.value.prepared.rejected] == [3]


def test_lists_with_gaps_and_of_other_lengths_are_single_rows(ground: Ground) -> None:
    good: list[float | None] = [1.0, 2.0, 3.0, 4.0]
    rows = [(f"r-{n}", good) for n in range(12)]
    bad: dict[int, list[float | None] | None] = {2: [1.0], 5: None, 7: [1.0, None, 3.0, 4.0]}
    write_lists(ground.folder / "a.parquet", [(i, bad.get(n, v)) for n, (i, v) in enumerate(rows)])
    with pytest.raises(PreparationFailed, match="has missing values"):
        ground.prepare(ground.request("a.parquet"))
    manifest = ground.prepare(ground.request("a.parquet", request=1, max_bad_share=0.5))
    assert manifest.rejected is not None
    reasons = {row.row: row.reason for row in manifest.rejected.first}
    assert reasons == {
        2: "column 'feature_a' has 1 numbers in row 2, the model declares 4 for image",
        5: "column 'feature_a' has missing values",
        7: "column 'feature_a' has missing values",
    }
    assert manifest.rows == 9


def test_gaps_in_the_internal_form_are_single_rows(ground: Ground) -> None:
    table = feature_table(12)
    lists = table["feature_a"].to_pylist()
    lists[4] = None
    column = pa.array(lists, pa.list_(pa.float32(), 4))
    write_shard(ground.folder / "a.parquet", table.set_column(1, "feature_a", column))
    manifest = ground.prepare(ground.request("a.parquet", max_bad_share=0.5))
    assert manifest.rejected is not None
    assert [row.row for row in manifest.rejected.first] == [4]
    assert manifest.rows == 11


def test_ids_are_unique_over_the_files_of_a_dataset(ground: Ground) -> None:
    for name in "abc":
        table = feature_table(16, prefix=name)
        if name == "c":
            ids = ["b-5" if row == 3 else id_ for row, id_ in enumerate(table["id"].to_pylist())]
            table = table.set_column(table.column_names.index("id"), "id", pa.array(ids))
        write_shard(ground.folder / f"{name}.parquet", table)
    message = r"c\.parquet: row 3 repeats the id of row 5 of .*b\.parquet"
    with pytest.raises(PreparationFailed, match=message):
        ground.prepare(ground.request("a.parquet", "b.parquet", "c.parquet"))


def test_of_rows_with_equal_ids_the_first_is_kept_if_rows_may_be_left_out(ground: Ground) -> None:
    write_shard(ground.folder / "a.parquet", feature_table(16, prefix="same"))
    write_shard(ground.folder / "b.parquet", feature_table(20, prefix="same", seed=1))
    manifest = ground.prepare(ground.request("a.parquet", "b.parquet", max_bad_share=0.5))
    assert manifest.shards[0].source is None
    assert ids_of(ground, manifest.shards[1:]) == [f"same-{n}" for n in range(16, 20)]
    assert manifest.rejected is not None
    assert manifest.rejected.rows == 16


def test_rows_with_repeated_ids_are_left_out_although_an_outage_interrupts_it(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_FIRST_PAUSE", 0.01)
    write_shard(ground.folder / "a.parquet", feature_table(16, prefix="same"))
    write_shard(ground.folder / "b.parquet", feature_table(20, prefix="same", seed=1))
    outages = [StorageUnavailable("the store does not answer")]

    def fail_once(task: UnitTask) -> None:
        if task.left_out and outages:
            raise outages.pop()

    ground.cluster.before = fail_once
    manifest = ground.prepare(ground.request("a.parquet", "b.parquet", max_bad_share=0.5))
    assert not outages
    assert ids_of(ground, manifest.shards[1:]) == [f"same-{n}" for n in range(16, 20)]


@pytest.mark.parametrize("at", [0, -1], ids=["checksum", "digest"])
def test_damaged_digests_of_ids_hide_no_repeated_id(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    read = LocalStore.read

    def flipped(store: LocalStore, key: str) -> bytes:
        data = bytearray(read(store, key))
        if key.endswith(".ids"):
            data[at] ^= 1
        return bytes(data)

    monkeypatch.setattr(LocalStore, "read", flipped)
    for name in "ab":
        write_shard(ground.folder / f"{name}.parquet", feature_table(16, prefix="same"))
    with pytest.raises(InvalidVersion, match="is not what was written; retry the job"):
        ground.prepare(ground.request("a.parquet", "b.parquet"))


def test_a_dataset_that_is_prepared_is_not_read_again(ground: Ground) -> None:
    write_shard(ground.folder / "a.parquet", feature_table(16))
    manifest = ground.prepare(ground.request("a.parquet"))
    (ground.folder / "a.parquet").unlink()
    ground.cluster.calls.clear()
    assert ground.prepare(ground.request("a.parquet", request=1)) == manifest
    assert ground.cluster.calls == []


def test_what_another_driver_has_done_is_not_done_again(ground: Ground) -> None:
    for name in "abc":
        write_shard(ground.folder / f"{name}.parquet", feature_table(16, prefix=name))

    def die_at_the_first(task: object) -> None:
        if getattr(task, "index", None) == 0:
            raise KeyboardInterrupt

    ground.cluster.before = die_at_the_first
    request = ground.request("a.parquet", "b.parquet", "c.parquet")
    with pytest.raises(KeyboardInterrupt):
        ground.prepare(request)
    for name in "bc":
        worse = damaged(feature_table(16, prefix=name), 1, np.nan)
        write_shard(ground.folder / f"{name}.parquet", worse)
    ground.cluster.before = lambda _: None
    with pytest.raises(PreparationFailed):
        ground.prepare(ground.request("a.parquet", "b.parquet", "c.parquet", request=1))
    # Rows of those that are done are not read again.
    assert ground.prepare(ground.request("a.parquet", "b.parquet", "c.parquet")).rows == 48


def test_addresses_outside_of_the_prefixes_are_refused(ground: Ground, tmp_path: Path) -> None:
    write_shard(tmp_path / "outside.parquet", feature_table(16))
    uri = (tmp_path / "outside.parquet").resolve().as_uri()
    with pytest.raises(PreparationFailed, match="outside the allowed prefixes"):
        ground.prepare(ground.request(shards=({"uri": uri},)))


def test_an_upload_is_read_from_our_store_and_called_by_its_name(ground: Ground) -> None:
    write_shard(ground.folder / "up", damaged(feature_table(16), 1, np.nan))
    ground.store.upload(ground.folder / "up", "uploads/up-1/file-1")
    name = "upload:up-1"
    request = ground.request(
        shards=({"uri": name},), locations={name: f"{ground.store.uri}/uploads/up-1/file-1"}
    )
    with pytest.raises(PreparationFailed, match=r"^upload:up-1: column 'feature_a' has NaN"):
        ground.prepare(request)


def test_a_dry_run_leaves_only_its_report(ground: Ground) -> None:
    np.savez(
        ground.folder / "a.npz",
        image=np.random.default_rng(0).normal(size=(20, 4)),
        text=np.random.default_rng(1).normal(size=(20, 3)),
    )
    report = dry_run(ground, "a.npz", report_version=0)
    assert (report.request, report.report.rows, report.report.refusals) == (0, 20, ())
    assert report.report.findings["image"].rows == 20
    keys = list(ground.store.keys("datasets/"))
    assert keys == [layout.preparation_file("ds-0123456789ab", "report")]


def test_a_dry_run_names_a_bad_shard_as_its_user_does(ground: Ground) -> None:
    """The address of an upload says nothing to who sent it."""
    draw = np.random.default_rng(0)
    turn = draw.normal(size=(4, 3))
    for part in "abcd":
        image = draw.normal(size=(80, 4))
        text = np.roll(image, int(part == "c"), axis=0) @ turn
        np.savez(ground.folder / f"{part}.npz", image=image, text=text)
    names = {f"{part}.npz": f"part-{part}.npz" for part in "abcd"}
    shards = [
        {"uri": (ground.folder / file).as_uri(), "name": name} for file, name in names.items()
    ]
    report = dry_run(ground, shards=shards, report_version=0).report
    assert [each.file for each in report.bad_shards] == [shards[2]["uri"]]
    assert [each[:11] for each in report.advice if "belong together" in each] == ["part-c.npz:"]


def dry_run(ground: Ground, *names: str, **more: Any) -> PrepareReport:
    request = ground.request(*names, **more)
    with pytest.raises(AssertionError):  # there is no manifest
        ground.prepare(request)
    key = layout.preparation_file(request.dataset, "report")
    return read_document(ground.store, key, PrepareReport)
