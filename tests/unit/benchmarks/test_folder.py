"""A folder of files as a stream: what is read, in which order, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.folder import InvalidStream, arranged, read_stream
from tests.unit.benchmarks.tiny_stream import WIDTHS, features, write_part, write_stream
from workers.model.heads import unit_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_stream(tmp_path / "tiny")


def test_datasets_come_in_order_of_their_numbers(tmp_path: Path) -> None:
    names = ("10_last_vt", "9_middle_at", "01_first_va")
    stream = read_stream(write_stream(tmp_path / "s", names))
    assert [one.name for one in stream.datasets] == ["01_first_va", "9_middle_at", "10_last_vt"]
    assert [str(one.pair) for one in stream.datasets] == ["v,a", "a,t", "v,t"]
    assert stream.widths == WIDTHS


def test_a_shuffled_order_is_fixed_by_its_seed() -> None:
    names = [f"{number:02}_n_vt" for number in range(10)]
    orders = [arranged(names, f"shuffled:{seed}") for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == names != orders[2]


def test_a_dataset_in_tasks_has_the_classes_one_after_another_and_tests_all_so_far(
    folder: Path,
) -> None:
    whole = read_stream(folder).datasets[0]
    stream = read_stream(folder, tasks=2)
    assert stream.name == "tiny-2-tasks"
    assert [one.name for one in stream.datasets[:3]] == [
        "01_one_vt-1",
        "01_one_vt-2",
        "02_two_at-1",
    ]
    first, second = stream.datasets[:2]
    assert len(first.training) == len(second.training) == len(whole.training) / 2
    keys = torch.cat([first.training.first_keys_N, second.training.first_keys_N])
    assert set(keys.tolist()) == set(whole.training.first_keys_N.tolist())
    assert len(first.held_out) == len(whole.held_out) / 2
    assert torch.equal(second.held_out.rows.first_NI, whole.held_out.rows.first_NI)
    with pytest.raises(InvalidStream, match="it has 4 classes for 5 tasks"):
        read_stream(folder, tasks=5)
    write_part(folder / "01_one_vt.train.parquet", features("01_one_vt", 5))
    with pytest.raises(InvalidStream, match="it has no labels, and tasks are made of classes"):
        read_stream(folder, tasks=2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_type_and_kind_of_list_reads_alike(tmp_path: Path, dtype: type[np.floating]) -> None:
    sides = [np.round(side * 8) / 8 for side in features("01_x_vt", 3)]  # exact in float16
    for name, plain in (("01_x_vt", False), ("02_y_vt", True)):
        for part in ("train", "test"):
            path = tmp_path / f"{name}.{part}.parquet"
            write_part(path, sides, dtype=dtype)
            if plain:
                _with_plain_lists(path)
    fixed, plain_lists = read_stream(tmp_path).datasets
    for one in (fixed, plain_lists):
        assert one.training.first_NI.dtype == torch.float32
        assert torch.equal(one.training.first_NI, torch.tensor(sides[0], dtype=torch.float32))
        assert torch.equal(one.training.second_NJ, torch.tensor(sides[1], dtype=torch.float32))
        assert torch.equal(one.training.first_keys_N, fixed.training.first_keys_N)


@pytest.mark.parametrize("of_rows", [None, [None] * 64, [""] * 64])
def test_a_dataset_without_labels_has_none(folder: Path, of_rows: list[str | None] | None) -> None:
    write_part(folder / "02_two_at.test.parquet", features("02_two_at", 5), of_rows)
    stream = read_stream(folder)
    assert [one.held_out.labels_N is None for one in stream.datasets] == [False, True, False]
    assert stream.notes == ()


def _spoil(row: int, value: float) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        sides = features("02_two_at", 1)
        sides[1][row] = value
        write_part(folder / "02_two_at.train.parquet", sides)

    return write


def _rows(number: int, part: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        sides = [side[:number] for side in features("02_two_at", 1)]
        write_part(folder / f"02_two_at.{part}.parquet", sides)

    return write


def _ragged(folder: Path) -> None:
    lists = pa.array([[1.0, 2.0], [1.0]])
    table = pa.table({"feature_a": lists, "feature_b": lists})
    pq.write_table(table, folder / "02_two_at.train.parquet")


def _missing_value(folder: Path) -> None:
    lists = pa.array([[1.0, 2.0], None])
    table = pa.table({"feature_a": lists, "feature_b": lists})
    pq.write_table(table, folder / "02_two_at.train.parquet")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "01_one_vt.test.parquet").unlink(), "01_one_vt.test.*missing"),
        (lambda folder: (folder / "01_one_vt.train.parquet").unlink(), "01_one_vt.train.*missing"),
        (_spoil(7, np.nan), "02_two_at.train.parquet: feature_b has NaN or infinity in row 7"),
        (_spoil(8, np.inf), "NaN or infinity in row 8"),
        (_spoil(9, 0.0), "length 0 in row 9"),
        (_rows(0, "train"), "no rows, at least 1"),
        (_rows(0, "test"), "no rows, at least 1"),
        (_rows(1, "train"), "1 row, at least 2"),
        (_ragged, "2 values in row 0 and 1 in row 1"),
        (_missing_value, "missing values"),
    ],
)
def test_rows_that_would_spoil_a_figure_are_refused(
    folder: Path, harm: Callable[[Path], object], words: str
) -> None:
    harm(folder)
    with pytest.raises(InvalidStream, match=words):
        read_stream(folder)


def _with_plain_lists(path: Path) -> None:
    table = pq.read_table(path)
    for place, name in enumerate(table.column_names):
        if name.startswith("feature"):
            lists = table.column(name)
            plain = pa.chunked_array([_plain(chunk) for chunk in lists.chunks])
            table = table.set_column(place, name, plain)
    pq.write_table(table, path)


def _plain(lists: pa.FixedSizeListArray) -> pa.ListArray:
    width = lists.type.list_size
    return pa.ListArray.from_arrays(np.arange(len(lists) + 1) * width, lists.flatten())


def test_a_constant_has_its_share_of_every_row(tmp_path: Path) -> None:
    folder = write_stream(tmp_path / "s")
    plain, coned = read_stream(folder), read_stream(folder, cone=0.9)
    assert coned.name == "s-cone-0.9"
    for one, other in zip(plain.datasets, coned.datasets, strict=True):
        added = other.training.first_NI - unit_rows(one.training.first_NI)
        torch.testing.assert_close(added, added[:1].expand_as(added))
        assert float(added[0].norm()) ** 2 == pytest.approx(9, rel=1e-4)
        held_out = other.held_out.rows.first_NI - unit_rows(one.held_out.rows.first_NI)
        torch.testing.assert_close(held_out, added[: len(held_out)][:1].expand_as(held_out))
        assert torch.equal(one.training.first_keys_N, other.training.first_keys_N)
