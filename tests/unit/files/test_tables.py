"""Parquet and Arrow: lists of other kinds are converted, hostile files are rejected by name."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmcl.contract.errors import InvalidDataset
from tests.unit.files.user_files import (
    URI,
    WIDTHS,
    check_file,
    claim_in_footer,
    features_of,
    paired,
    rows_of,
    with_column,
    with_value,
)
from workers.files import columns
from workers.files.columns import HARMLESS_BYTES, check_expansion
from workers.files.formats import LARGEST_FOOTER, is_internal

Write = Callable[[Path, pa.Table], pa.Table]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "theirs"


def as_parquet(path: Path, table: pa.Table) -> pa.Table:
    pq.write_table(table, path)
    return rows_of(path)


def as_arrow(path: Path, table: pa.Table, **options: object) -> pa.Table:
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return rows_of(path)


BOTH = pytest.mark.parametrize("write", [as_parquet, as_arrow])


@BOTH
@pytest.mark.parametrize("make_list", [pa.list_, pa.large_list])
@pytest.mark.parametrize("number", [pa.float32(), pa.float64()], ids=str)
def test_lists_of_one_length_become_fixed_size_lists(
    path: Path, write: Write, make_list: Callable[[pa.DataType], pa.DataType], number: pa.DataType
) -> None:
    table = paired()
    lists = table.column("feature_b").cast(make_list(number))
    rows = write(path, with_column(table, "feature_b", lists))
    assert rows.schema.field("feature_b").type == pa.list_(pa.float32(), WIDTHS[1])
    assert np.array_equal(features_of(rows, "feature_b"), features_of(table, "feature_b"))


@BOTH
def test_a_nested_null_behind_a_slice_is_found(path: Path, write: Write) -> None:
    table = with_value(paired(rows=30), "feature_a", 25, None).slice(5)
    with pytest.raises(InvalidDataset, match="'feature_a' has missing values"):
        write(path, table)


def test_internal_parquet_need_not_be_converted(path: Path) -> None:
    for kind in (pa.float16(), pa.float32()):
        pq.write_table(paired(kind=kind), path)
        assert is_internal(path, URI)


def test_parquet_as_pandas_writes_it_is_internal(path: Path) -> None:
    table = paired()
    lists = table.column("feature_a").cast(pa.list_(pa.float64()))
    pq.write_table(with_column(table, "feature_a", lists), path)
    assert not is_internal(path, URI)


@BOTH
def test_ids_by_number_of_a_dictionary_are_text(path: Path, write: Write) -> None:
    table = paired()
    for name in ("id", "label"):
        table = with_column(table, name, table.column(name).combine_chunks().dictionary_encode())
    rows = write(path, table)
    assert rows.column("id").to_pylist() == paired().column("id").to_pylist()
    assert rows.column("label").type == pa.string()


def test_internal_parquet_with_a_dictionary_of_ids_is_checked_in_place(path: Path) -> None:
    table = paired()
    ids = table.column("id").combine_chunks().dictionary_encode()
    pq.write_table(with_column(table, "id", ids), path)
    assert is_internal(path, URI)
    check_file(path)


def test_a_dictionary_of_numbers_is_no_text(path: Path) -> None:
    ids = pa.array(range(10)).dictionary_encode()
    pq.write_table(with_column(paired(), "id", ids), path)
    with pytest.raises(InvalidDataset, match="'id' must be text, is int64"):
        check_file(path)


@pytest.mark.parametrize("column", ["id", "label"])
def test_a_text_that_would_be_unfolded_for_each_row_is_refused(path: Path, column: str) -> None:
    texts = ["x" * 5000] * 10 if column == "label" else [f"{row}" * 5000 for row in range(10)]
    pq.write_table(with_column(paired(), column, pa.array(texts)), path)
    with pytest.raises(InvalidDataset, match=f"'{column}' has a text of 5000 bytes; at most 4096"):
        check_file(path)


def test_a_footer_without_bound_is_not_parsed(path: Path) -> None:
    footer = LARGEST_FOOTER + 1
    with path.open("wb") as file:
        file.write(b"PAR1")
        file.truncate(footer + 100)
        file.seek(footer + 92)
        file.write(struct.pack("<I", footer) + b"PAR1")
    with pytest.raises(InvalidDataset, match=f"its footer has {footer} bytes, at most"):
        rows_of(path)


def test_a_footer_with_a_false_length_is_rejected(path: Path) -> None:
    pq.write_table(paired(), path)
    path.write_bytes(path.read_bytes()[:-8] + struct.pack("<I", 1 << 31) + b"PAR1")
    with pytest.raises(InvalidDataset, match="cannot be read as Parquet"):
        rows_of(path)


def test_more_than_an_honest_file_can_hold_is_a_bomb(path: Path) -> None:
    path.write_bytes(b"x" * 1000)
    check_expansion(HARMLESS_BYTES, path, URI)
    with pytest.raises(InvalidDataset, match="its 1000 bytes claim to unfold to 1073741825"):
        check_expansion(HARMLESS_BYTES + 1, path, URI)


def test_a_parquet_bomb_is_seen_in_its_footer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "HARMLESS_BYTES", 1 << 20)
    values = constant(1024, 512)
    table = pa.table({"id": ["x"] * 1024, "feature_a": values, "feature_b": values})
    options = {"use_dictionary": False, "write_statistics": False, "compression": "zstd"}
    pq.write_table(table, path, **options)
    with pytest.raises(InvalidDataset, match="claim to unfold to"):
        rows_of(path)


WIDE = WIDTHS[0] * 300


# Where the numbers of rows stand in a footer, in their order: the file's; the values of the columns
# id, label, feature_a and feature_b; the row group's.
@pytest.mark.parametrize(
    ("declared", "place", "claim", "words"),
    [
        (300, 0, 1 << 40, "declares 1099511627776 rows, and its row groups have 300 together"),
        (300, 0, 299, "declares 299 rows, and its row groups have 300 together"),
        (300, 0, 0, "declares 0 rows, and its row groups have 300 together"),
        (300, 1, 299, "row group 0 declares 300 rows, and its column 'id' has 299"),
        (300, 2, 1 << 40, "row group 0 declares 300 rows, and its column 'label' has 10995116277"),
        (300, 3, 301, "declares 300 rows, and its row groups have 301 together"),
        (WIDE, 0, WIDE - 1, f"'feature_a' declares {WIDE - 1} numbers, and {WIDE} were read"),
    ],
)
def test_a_footer_that_disagrees_with_its_rows_is_refused(
    path: Path, declared: int, place: int, claim: int, words: str
) -> None:
    pq.write_table(paired(rows=300), path)
    claim_in_footer(path, declared, {place: claim})
    with pytest.raises(InvalidDataset, match=f"{URI}: .*{words}"):
        check_file(path)


@pytest.mark.parametrize(("claim", "read"), [(301, 300), (1 << 20, 300)])
def test_rows_that_all_of_a_footer_declares_and_no_page_has_are_missed(
    path: Path, claim: int, read: int
) -> None:
    pq.write_table(paired(rows=300), path)
    claim_in_footer(path, 300, dict.fromkeys(range(4), claim))
    words = f"row group 0 declares {claim} rows, and {read} were read"
    with pytest.raises(InvalidDataset, match=words):
        check_file(path)


def test_row_groups_that_make_up_for_each_other_are_refused(path: Path) -> None:
    """Ranks read only the groups with their rows, so a correct total is not enough."""
    table = paired(rows=301)
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table.slice(0, 100))
        writer.write_table(table.slice(100))
    claim_in_footer(path, 100, dict.fromkeys(range(3), 101))
    claim_in_footer(path, 201, dict.fromkeys(range(3), 200))
    assert sum(batch.num_rows for batch in pq.ParquetFile(path).iter_batches()) == 301
    with pytest.raises(InvalidDataset, match="row group 0 declares 101 rows, and 100 were read"):
        check_file(path)


def constant(rows: int, width: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * width, np.float32)), width)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_arrow_is_read(path: Path, compression: str) -> None:
    table = paired(rows=300)
    rows = as_arrow(path, table, compression=compression)
    assert np.array_equal(features_of(rows, "feature_a"), features_of(table, "feature_a"))


def test_an_arrow_bomb_is_refused_while_it_unfolds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "HARMLESS_BYTES", 1 << 20)
    features_a, features_b = (constant(100_000, width) for width in WIDTHS)
    ids = pa.array(["x"] * 100_000).dictionary_encode()
    table = pa.table({"id": ids, "feature_a": features_a, "feature_b": features_b})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(path, table.schema, options=options) as writer:
        writer.write_table(table)
    with pytest.raises(InvalidDataset, match="claim to unfold to 3"):
        rows_of(path)


def test_an_arrow_batch_with_a_false_size_is_rejected(path: Path) -> None:
    table = paired(rows=300)
    as_arrow(path, table, compression="zstd")
    whole = path.read_bytes()
    size = struct.pack("<q", 300 * WIDTHS[0] * 4)
    assert whole.count(size) > 0
    path.write_bytes(whole.replace(size, struct.pack("<q", 3 << 30)))
    with pytest.raises(InvalidDataset, match="it cannot be read as Arrow IPC"):
        rows_of(path)


def test_a_stream_cut_off_between_two_batches_is_refused(path: Path) -> None:
    table = paired(rows=300)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    assert rows_of(path).num_rows == 300
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InvalidDataset, match="cut off: the mark at the end of Arrow IPC is miss"):
        rows_of(path)


def test_arrow_offsets_that_point_outside_are_refused(path: Path) -> None:
    as_arrow(path, paired(rows=10))
    whole = path.read_bytes()
    offsets = np.arange(0, 60, 5, dtype=np.int32)[:11].tobytes()
    ids = paired(rows=10).column("id").combine_chunks()
    assert offsets in whole
    assert len(ids) == 10
    path.write_bytes(whole.replace(offsets, np.full(11, 2**30, np.int32).tobytes()))
    with pytest.raises(InvalidDataset, match="cannot be read as Arrow IPC"):
        rows_of(path)
