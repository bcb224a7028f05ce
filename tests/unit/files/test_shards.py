"""Valid shards are read unchanged; errors of others name file, column and row."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmcl.contract.dataset import ShardRef
from cmcl.contract.errors import InvalidDataset, InvalidUri, StorageUnavailable
from cmcl.storage.versions import digests_of_file
from tests.fakes.feature_shards import fetch, read_rows
from tests.unit.files.user_files import (
    URI,
    WIDTHS,
    check_file,
    features,
    paired,
    with_column,
    with_value,
)
from workers.files.columns import id_digest, repeated_ids

Spoil = Callable[[pa.Table], pa.Table]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shard.parquet"


def check(table: pa.Table, path: Path, **options: int) -> None:
    pq.write_table(table, path, **options)
    check_file(path)


def ref(path: Path, sha256: str | None = None) -> ShardRef:
    return ShardRef(uri=path.as_uri(), sha256=sha256)


# What is right.


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32()], ids=str)
def test_both_kinds_of_float_are_read_as_float32_in_the_order_of_the_rows(
    path: Path, kind: pa.DataType
) -> None:
    table = paired(rows=50, kind=kind)
    check(table, path, row_group_size=7)
    rows = read_rows([path])
    assert len(rows) == 50
    assert rows.feature_a_BI.dtype == rows.feature_b_BI.dtype == np.float32
    assert rows.feature_a_BI.shape == (50, WIDTHS[0])
    assert np.array_equal(rows.feature_a_BI, np.array(table.column("feature_a").to_pylist()))
    assert np.array_equal(rows.feature_b_BI, np.array(table.column("feature_b").to_pylist()))
    assert rows.label_B is not None
    assert rows.label_B.tolist() == table.column("label").to_pylist()


def test_shards_follow_each_other_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    paths, tables = [tmp_path / "z", tmp_path / "a"], [paired(3), paired(4, start=3)]
    for path, table in zip(paths, tables, strict=True):
        pq.write_table(table, path)
    expected = pa.concat_tables(tables)
    rows = read_rows(paths)
    assert np.array_equal(rows.feature_a_BI, np.array(expected.column("feature_a").to_pylist()))
    assert rows.label_B is not None
    assert rows.label_B.tolist() == expected.column("label").to_pylist()


def test_more_columns_than_needed_do_no_harm(path: Path) -> None:
    table = paired().append_column("when", pa.array(range(10))).select([4, 3, 2, 1, 0])
    check(table, path)
    assert np.array_equal(
        read_rows([path]).feature_a_BI, np.array(table.column("feature_a").to_pylist())
    )


def test_a_table_that_was_cut_out_of_a_larger_one_is_read_where_it_was_cut(path: Path) -> None:
    table = paired(rows=20).slice(5, 10)
    check(table, path)
    assert np.array_equal(
        read_rows([path]).feature_b_BI, np.array(table.column("feature_b").to_pylist())
    )


def test_labels_are_optional_and_those_of_some_shards_alone_do_not_count(tmp_path: Path) -> None:
    with_labels, without = tmp_path / "a", tmp_path / "b"
    check(paired(), with_labels)
    check(paired(start=10).drop_columns("label"), without)
    assert read_rows([without]).label_B is None
    assert read_rows([with_labels, without]).label_B is None


def test_large_strings_are_text_too(path: Path) -> None:
    table = paired()
    large = table.column("id").cast(pa.large_string())
    check(with_column(table, "id", large), path)


def test_a_fetched_shard_is_described_as_it_is(path: Path, tmp_path: Path) -> None:
    pq.write_table(paired(rows=12), path)
    digest = digests_of_file(path).sha256
    for promised in (None, digest):
        shard = fetch(ref(path, promised), tmp_path / "fetched")
        assert (shard.sha256, shard.bytes, shard.rows) == (digest, path.stat().st_size, 12)
        assert (tmp_path / "fetched").read_bytes() == path.read_bytes()


# What is wrong with a file as a whole.


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match=r"gone\.parquet: there is no such object"):
        fetch(ref(tmp_path / "gone.parquet"), tmp_path / "fetched")


def test_a_digest_mismatch_is_rejected_with_both_digests(path: Path, tmp_path: Path) -> None:
    pq.write_table(paired(), path)
    with pytest.raises(
        InvalidDataset, match=f"is {digests_of_file(path).sha256}, expected {'0' * 64}"
    ):
        fetch(ref(path, "0" * 64), tmp_path / "fetched")


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_truncated_shard_is_refused(path: Path, tmp_path: Path, keep: int) -> None:
    pq.write_table(paired(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InvalidDataset, match=r"shard\.parquet: it cannot be read as Parquet"):
        fetch(ref(path), tmp_path / "fetched")


def test_another_kind_of_file_is_refused(path: Path, tmp_path: Path) -> None:
    path.write_text("id,label\n1,a\n")
    with pytest.raises(InvalidDataset, match="cannot be read as Parquet"):
        fetch(ref(path), tmp_path / "fetched")


def test_a_shard_without_rows_is_refused(path: Path, tmp_path: Path) -> None:
    pq.write_table(paired().slice(0, 0), path)
    with pytest.raises(InvalidDataset, match="it has no rows, at least 1 is needed"):
        fetch(ref(path), tmp_path / "fetched")


def test_bytes_damaged_in_the_middle_are_found_or_harmless(path: Path) -> None:
    pq.write_table(paired(rows=200), path)
    whole = path.read_bytes()
    refused = 0
    for position in range(4, len(whole) - 8, len(whole) // 40):
        path.write_bytes(whole[:position] + b"\xff\xff\xff\xff" + whole[position + 4 :])
        try:
            check_file(path)
        except InvalidDataset as error:
            assert URI in str(error)  # noqa: PT017 - other errors fail the test
            refused += 1
    assert refused > 0


def test_an_unavailable_store_is_not_the_user_s_fault(path: Path, tmp_path: Path) -> None:
    pq.write_table(paired(), path)
    with pytest.raises(StorageUnavailable):
        fetch(ref(path), tmp_path / "no" / "such" / "folder" / "fetched")


def test_an_address_that_climbs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidUri):
        fetch(ShardRef(uri="file:///data/../etc/passwd"), tmp_path / "fetched")


# What is wrong with columns and rows.


def spoiled(column: str, values: object) -> Spoil:
    """Replaces a column."""
    return lambda table: with_column(table, column, values)


def valued(column: str, row: int, value: list[float | None] | None) -> Spoil:
    """Replaces one feature."""
    return lambda table: with_value(table, column, row, value)


def repeated(column: str) -> Spoil:
    """Adds a column once more."""
    return lambda table: table.append_column(column, table.column(column))


def overflowed(table: pa.Table) -> pa.Table:
    """Has infinity in row 4, as float16."""
    halves = paired(kind=pa.float16())
    values = np.array(halves.column("feature_b").to_pylist()).astype(np.float16)
    values[4, 0] = np.float16("inf")
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), WIDTHS[1])
    return with_column(halves, "feature_b", column)


NO_UTF_8 = pa.StringArray.from_buffers(
    10, pa.py_buffer(np.arange(11, dtype=np.int32)), pa.py_buffer(b"\xff" * 10)
)
NO_FEATURES = "'feature_b' must be a list of float16, float32 or"
NOT_FINITE = "has NaN or infinity in row"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        *(
            (
                lambda table, name=name: table.drop_columns(name),
                f"column '{name}' is missing; found",
            )
            for name in ("id", "feature_a", "feature_b")
        ),
        *((repeated(name), f"'{name}' is there more than once") for name in ("id", "feature_b")),
        (repeated("label"), "'label' is there more than once"),
        *(
            (spoiled(name, pa.array(range(10))), f"column '{name}' must be text, is int64")
            for name in ("id", "label")
        ),
        (
            spoiled("feature_a", features(10, 5, pa.float32())),
            "column 'feature_a' has width 5, the model declares 4",
        ),
        (
            spoiled("feature_b", features(10, 2, pa.float32())),
            "column 'feature_b' has width 2, the model declares 3",
        ),
        (spoiled("feature_b", pa.array([[1, 2, 3]] * 10, pa.list_(pa.int32(), 3))), NO_FEATURES),
        (spoiled("feature_b", pa.array([1.0] * 10, pa.float32())), NO_FEATURES),
        (spoiled("feature_b", pa.array([b"abc"] * 10)), NO_FEATURES),
        (valued("feature_a", 7, [1, 1, 1, float("nan")]), f"'feature_a' {NOT_FINITE} 7"),
        (valued("feature_b", 7, [1, 1, float("-inf")]), f"'feature_b' {NOT_FINITE} 7"),
        (overflowed, f"{NOT_FINITE} 4"),
        (valued("feature_a", 3, [0.0] * 4), "'feature_a' is all zeros in row 3"),
        (valued("feature_b", 3, [-0.0] * 3), "'feature_b' is all zeros in row 3"),
        (valued("feature_a", 3, [1e30] * 4), r"'feature_a' has length 2e\+30 in row 3"),
        (valued("feature_a", 3, [1e-30] * 4), "'feature_a' has length 2e-30 in row 3"),
        (valued("feature_b", 5, None), "'feature_b' has missing values"),
        (valued("feature_b", 5, [1.0, None, 2.0]), "'feature_b' has missing values"),
        (spoiled("label", pa.array(["cat"] * 6 + [None] + ["cat"] * 3)), "row 6 has no label"),
        (spoiled("label", NO_UTF_8), "cannot be read as Parquet"),
        (spoiled("id", pa.array([*"abcdef", None, *"ghi"])), "row 6 has no id"),
        (spoiled("id", pa.array([*"abcdefghab"])), "row 8 repeats the id of row 0 of"),
    ],
)
def test_a_file_that_cannot_be_learned_is_refused_with_column_and_row(
    path: Path, spoil: Spoil, words: str
) -> None:
    with pytest.raises(InvalidDataset, match=f"{URI}: .*{words}"):
        check(spoil(paired()), path)


def test_columns_of_the_users_own_are_never_read(path: Path) -> None:
    table = paired()
    for _ in range(2):
        table = table.append_column("note", pa.array(range(10)))
    check(table, path)
    assert len(read_rows([path])) == 10


def test_rows_are_counted_through_the_whole_file_and_not_from_each_chunk(path: Path) -> None:
    table = with_value(paired(rows=9000), "feature_a", 8500, [float("nan")] * WIDTHS[0])
    with pytest.raises(InvalidDataset, match="NaN or infinity in row 8500"):
        check(table, path, row_group_size=1000)


def test_every_row_that_cannot_be_used_is_found_with_a_reason(path: Path) -> None:
    table = with_value(paired(rows=30), "feature_b", 4, [0.0] * WIDTHS[1])
    names = {4: None, 27: None, 28: "row-2", 29: "row-2"}
    ids = pa.array([names.get(row, f"row-{row}") for row in range(30)])
    pq.write_table(with_column(table, "id", ids), path, row_group_size=20)
    found: dict[int, str] = {}
    digests = check_file(path, found)
    assert list(found) == [4, 27, 28, 29]
    assert found[4] == "row 4 has no id"
    assert found[29].startswith(f"row 29 repeats the id of row 2 of {URI};")
    assert [digests[16 * row : 16 * row + 16] for row in (4, 5)] == [bytes(16), id_digest("row-5")]


def test_the_last_row_of_a_file_is_checked_too(path: Path) -> None:
    table = with_value(paired(rows=8193), "feature_b", 8192, [0.0] * WIDTHS[1])
    with pytest.raises(InvalidDataset, match="all zeros in row 8192"):
        check(table, path)


def test_a_name_that_no_file_can_have_is_wrong_and_not_an_outage(tmp_path: Path) -> None:
    with pytest.raises(InvalidUri, match="too long a name"):
        fetch(ref(tmp_path / ("x" * 300)), tmp_path / "fetched")


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_every_so_many_rows_are_chosen_evenly_over_all_shards(tmp_path: Path, every: int) -> None:
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    whole = pa.concat_tables([paired(11), paired(9, start=11)])
    pq.write_table(whole.slice(0, 11), paths[0], row_group_size=4)
    pq.write_table(whole.slice(11), paths[1])
    all_rows, some = read_rows(paths), read_rows(paths, every)
    assert len(some) == -(-20 // every)
    np.testing.assert_array_equal(some.feature_a_BI, all_rows.feature_a_BI[::every])
    np.testing.assert_array_equal(some.feature_b_BI, all_rows.feature_b_BI[::every])
    assert all_rows.label_B is not None
    assert some.label_B is not None
    assert some.label_B.tolist() == all_rows.label_B[::every].tolist()


@given(st.lists(st.integers(-3, 40), max_size=200))
def test_each_repeated_id_is_found_with_its_first_row(values: list[int]) -> None:
    """Negative numbers are rows without an id. Ids of which half of the digest is equal differ."""
    first: dict[int, int] = {}
    expected, digests = [], bytearray()
    for row, value in enumerate(values):
        digest = id_digest(str(value))
        half = digest[:8] if value % 2 else id_digest("the same")[:8]
        digests += bytes(16) if value < 0 else half + digest[8:]
        if value >= 0 and value in first:
            expected.append([row, first[value]])
        first.setdefault(value, row)
    assert repeated_ids(np.frombuffer(digests, np.uint64)).tolist() == expected
