"""Planning: which files are what, units, repeated ids, and what refuses a dataset as a whole."""

import hashlib
import io
import json
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmcl.contract.dataset import ShardRef
from cmcl.contract.errors import InvalidDataset, InvalidUri
from tests.fakes.raw_files import (
    DEPTH,
    IMAGE,
    PLACE,
    TEXT,
    Dataset,
    csv_bytes,
    jsonl,
    parquet_bytes,
    picture,
    side,
    tar_bytes,
)
from tests.unit.prepare.conftest import NewDataset
from workers.prepare.forms import lines as forms_of_lines
from workers.prepare.forms.lines import BYTE_ORDER_MARK
from workers.prepare.forms.record import Locator, StoredFile


def texts(count: int, prefix: str = "") -> list[dict[str, object]]:
    return [{"id": f"{prefix}{at}", "place": [at, 1], "text": f"text {at}"} for at in range(count)]


def columns(rows: list[dict[str, object]]) -> dict[str, list[object]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, id=np.array(["a"]), feature_a=np.ones((1, 2)), feature_b=np.ones((1, 2)))
    return file.getvalue()


@pytest.mark.parametrize("name", ["a.parquet", "b.npz"])
def test_files_of_features_are_told_apart_from_raw_rows(dataset: NewDataset, name: str) -> None:
    data = dataset(PLACE, TEXT)
    features = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
    table = parquet_bytes({"id": ["a"], "feature_a": features, "feature_b": features})
    data.add(name, table if name == "a.parquet" else npz())
    planned = data.plan()
    assert (planned.units, planned.feature_files, planned.rows) == ([], [0], 0)
    data.add("rows.jsonl", jsonl(texts(1)))
    with pytest.raises(InvalidDataset, match=r"holds features, and .*send them as two datasets"):
        data.plan()


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "tar"])
def test_units_cover_each_row_once(dataset: NewDataset, form: str) -> None:
    # Of items that may be so large, a unit has 64 rows.
    data = dataset(PLACE, side("text", "text", max_item_bytes=256 << 20))
    rows = texts(140)
    content = {
        "jsonl": lambda: jsonl(rows),
        "csv": lambda: csv_bytes(rows, ["id", "place", "text"]),
        "parquet": lambda: parquet_bytes(columns(rows), row_group_size=90),
        "tar": lambda: tar_bytes((f"{row['id']}.json", jsonl([row])) for row in rows),
    }[form]()
    data.add(f"rows.{form}", content)
    planned = data.plan()
    assert planned.rows == len(rows)
    assert {unit.form for unit in planned.units} == {form}
    assert max(unit.rows for unit in planned.units) == 64
    assert planned.units[0].first_row == 0
    for before, after in pairwise(planned.units):
        assert after.first_row == before.first_row + before.rows
        assert form == "parquet" or after.start >= before.stop
    read = data.read(planned)
    assert read.ids == [str(row["id"]) for row in rows]
    assert [row.items[1] for row in read.rows] == [row["text"] for row in rows]
    assert read.rejected == []


def test_small_row_groups_share_a_unit_and_large_ones_are_divided(dataset: NewDataset) -> None:
    data = dataset(PLACE, TEXT)
    data.add("small.parquet", parquet_bytes(columns(texts(90, "s")), row_group_size=10))
    data.add("large.parquet", parquet_bytes(columns(texts(2500, "l"))))
    data.add("middle.parquet", parquet_bytes(columns(texts(2400, "m")), row_group_size=600))
    units = [(unit.file, unit.rows) for unit in data.plan().units]
    assert units == [(0, 90), (1, 1024), (1, 1024), (1, 452), *[(2, 600)] * 4]


def test_units_of_large_items_have_fewer_rows(dataset: NewDataset) -> None:
    data = dataset(side("image", "image", max_item_bytes=256 << 20), TEXT)
    rows = [{"id": f"{at}", "image_file_name": "a", "text": "a"} for at in range(100)]
    data.add("rows.jsonl", jsonl(rows))
    assert [unit.rows for unit in data.plan().units] == [63, 37]


def test_a_list_of_texts_in_a_tar_gives_a_row_for_each_text_of_one_picture(
    dataset: NewDataset,
) -> None:
    data = dataset(IMAGE, TEXT)
    named = {"id": ["x", "y"], "label": "l", "text": ["one", "two"]}
    files = [("a.png", picture()), ("a.json", json.dumps(named).encode())]
    files += [("b.png", picture(1)), ("b.json", b'{"text": ["three", "four"], "label": "m"}')]
    data.add("rows.tar", tar_bytes(files))
    read = data.read()
    assert [(row.id, row.label, row.items[1]) for row in read.rows] == [
        ("x", "l", "one"),
        ("y", "l", "two"),
        ("b#1", "m", "three"),
        ("b#2", "m", "four"),
    ]
    assert [row.keys[0] for row in read.rows] == [read.rows[at].keys[0] for at in (0, 0, 2, 2)]


def test_the_rows_of_one_picture_are_never_in_two_units(dataset: NewDataset) -> None:
    data = dataset(IMAGE, TEXT)
    texts = [f"caption {at}" for at in range(700)]
    about = json.dumps({"text": texts}).encode()
    names = ("a", "b", "c")
    files = [((f"{n}.png", picture(at)), (f"{n}.json", about)) for at, n in enumerate(names)]
    data.add("rows.tar", tar_bytes(member for pair in files for member in pair))
    planned = data.plan()
    assert [(unit.first_row, unit.rows) for unit in planned.units] == [
        (0, 700),
        (700, 700),
        (1400, 700),
    ]
    assert data.read(planned).ids == [f"{n}#{at}" for n in names for at in range(1, 701)]


def test_planning_opens_no_file_that_rows_name(dataset: NewDataset) -> None:
    # Of items that may be so large, a unit has 64 rows.
    data = dataset(side("image", "image", max_item_bytes=256 << 20), TEXT)
    there = data.file("there.png", picture())
    count = 150
    names = ["there.png"] * count
    for missing in (7, 75, 149):
        names[missing] = f"{missing}.png"
    rows = [{"id": f"{at}", "image_file_name": name, "text": "a"} for at, name in enumerate(names)]
    data.add("rows.jsonl", jsonl(rows))
    picture_path = Path(there.removeprefix("file://"))
    picture_path.rename(picture_path.with_name("moved.png"))
    planned = data.plan()
    assert planned.rows == count
    picture_path.with_name("moved.png").rename(picture_path)
    read = data.read(planned)
    assert set(read.reasons) == {"75", "149", "7"}
    assert all(f"{id_}.png" in reason for id_, reason in read.reasons.items())
    assert len(read.rows) == count - 3


COLUMNS = ["id", "image_file_name", "text"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"key,image_file_name,text\n1,a,b\n", r"column 'id' is missing; found \['key'"),
        ("a.csv", b"id,image_filename,text\n1,a,b\n", "was 'image_filename' meant to be 'image_f"),
        ("a.csv", b"id,image,text\n1,a,b\n", "no column for image: 'image_file_name' must hold"),
        ("a.csv", b"id,image_file_name\n1,a\n", "no column for text: 'text' or 'text_file_name'"),
        ("a.csv", b"id,image_file_name,text,Label\n1,a,b,c\n", "column 'Label' looks like 'label'"),
        ("a.csv", b"id,image_file_name,text,text\n1,a,b,c\n", "are there more than once"),
        ("a.csv", b"id;image_file_name;text\n1;a;b\n", "column 'id' is missing"),
        ("a.csv", b'id,image_file_name,text\n1,a,"b\n', "cannot be read as CSV: unexpected end"),
        ("a.csv", b"id,image_file_name,text\n", "it has no rows, at least 1 is needed"),
        ("a.csv", "id,text\n".encode("utf-16"), "it is UTF-16; write it as UTF-8"),
        ("a.jsonl", b"\n\n", "by its first bytes it is no file of rows"),
        ("a.jsonl", b"", "it is empty"),
        ("a.jsonl", b"[{}]", "it is a JSON array; write one object a line"),
        ("a.jsonl", b'{"id": "1", "text": "b"}\n', "no column for image"),
        ("a.jsonl", b'{"id": "1", "text": "b", "image": "a.png"}\n', "no column for image"),
        ("a.parquet", b"PAR1 and nothing more", "cannot be read as Parquet: it does not end as"),
        ("a.gz", b"\x1f\x8b\x08\x00", "compressed by gzip as a whole"),
        ("a.png", picture(), "by its first bytes it is no file of rows"),
        (
            "a.parquet",
            parquet_bytes({"id": ["1"], "text": ["a"]}),
            "no column for image: 'image' or",
        ),
        (
            "a.parquet",
            parquet_bytes({"id": ["1"], "image": ["a.png"], "text": ["b"]}),
            "column 'image' must be {bytes, path} structs or binary, is string",
        ),
        (
            "a.parquet",
            parquet_bytes({"id": ["1"], "image": [b"a"], "text": [1]}),
            "column 'text' must be text, is int64",
        ),
        (
            "a.parquet",
            parquet_bytes({"id": [1.5], "image": [b"a"], "text": ["b"]}),
            "column 'id' must be text or whole numbers, is double",
        ),
        (
            "a.parquet",
            parquet_bytes({"id": ["1"], "image": [b"a"], "text": ["b"], "label": [1]}),
            "column 'label' must be text, is int64",
        ),
        ("a.tar", tar_bytes([("a.txt", b"a")]), "no member for image"),
        (
            "a.tar",
            tar_bytes([("a.txt", b"a"), ("a.png", picture())])[:700],
            "cannot be read as tar",
        ),
        ("a.tar", tar_bytes([("a.txt", b"a"), ("a.png", b"p")])[:2048], "perhaps cut off"),
        (
            "a.tar",
            tar_bytes([("a.txt", b"a"), ("a.png", b"p")])[:2048] + b"x" * 1024,
            "it is damaged: byte 2048 does not begin a header",
        ),
        ("a.tar", tar_bytes([]), "by its first bytes"),
    ],
)
def test_a_file_that_cannot_be_used_as_a_whole(
    dataset: NewDataset, name: str, content: bytes, message: str
) -> None:
    data = dataset(IMAGE, TEXT)
    uri = data.add(name, content)
    with pytest.raises(InvalidDataset, match=message) as refused:
        data.plan()
    assert str(refused.value).startswith(uri)


def test_features_have_no_files(dataset: NewDataset) -> None:
    data = dataset(DEPTH, TEXT)
    data.add("a.csv", b"id,depth_file_name,text\n1,a,b\n")
    with pytest.raises(
        InvalidDataset, match="no column for depth: it has no encoder, so 'depth' mu"
    ):
        data.plan()


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "tar"])
def test_the_digest_of_the_user_is_checked(dataset: NewDataset, form: str) -> None:
    data = dataset(PLACE, TEXT)
    rows = texts(3)
    content = {
        "jsonl": jsonl(rows),
        "csv": csv_bytes(rows, ["id", "place", "text"]),
        "parquet": parquet_bytes(columns(rows)),
        "tar": tar_bytes((f"{row['id']}.json", jsonl([row])) for row in rows),
    }[form]
    data.add("rows", content, hashlib.sha256(content).hexdigest())
    assert data.plan().rows == 3
    data.refs.clear()
    data.add("rows", content, "0" * 64)
    with pytest.raises(
        InvalidDataset, match=f"its SHA-256 is {hashlib.sha256(content).hexdigest()}"
    ):
        data.plan()


def test_a_file_outside_the_allowed_prefixes_is_refused(
    dataset: NewDataset, tmp_path: Path
) -> None:
    data = dataset(PLACE, TEXT)
    data.add("../outside.jsonl", jsonl(texts(1)))
    with pytest.raises(InvalidUri, match="outside the allowed prefixes"):
        data.plan()
    data.refs.clear()
    uri = data.add("there.jsonl", jsonl(texts(1)))
    Path(uri.removeprefix("file://")).unlink()
    with pytest.raises(InvalidDataset, match="there is no such object"):
        data.plan()


def test_an_upload_is_read_from_its_location(dataset: NewDataset, tmp_path: Path) -> None:
    data = dataset(PLACE, TEXT)
    data.add("rows.jsonl", jsonl(texts(1)))
    place = tmp_path / "store" / "file-1"
    place.parent.mkdir()
    place.write_bytes(jsonl([*texts(2), {"id": "x", "place": [1], "text_file_name": "a.txt"}]))
    source = data.source.model_copy(
        update={
            "files": (data.refs[0].model_copy(update={"uri": "upload:abc"}),),
            "locations": {"upload:abc": place.as_uri()},
        }
    )
    uploaded = _WithSource(data, source)
    read = uploaded.read()
    assert read.ids == ["0", "1"]
    assert "is relative to an upload, which has no folder" in read.reasons["x"]


class _WithSource(Dataset):
    """A dataset whose source is given."""

    def __init__(self, data: Dataset, source: object) -> None:
        super().__init__(data.folder, data.child, *data.sides)
        self._given = source

    @property
    def source(self) -> object:  # type: ignore[override]
        return self._given


def test_an_id_that_is_repeated_in_any_file_is_found_with_its_first_row(
    dataset: NewDataset,
) -> None:
    data = dataset(PLACE, TEXT)
    rows = texts(1500)
    first = data.add("a.jsonl", jsonl([*rows, rows[3]]))
    data.add("b.csv", csv_bytes([rows[0], rows[1499], rows[0]], ["id", "place", "text"]))
    found = [
        (unit.file, each.row, each.first_file)
        for unit in data.plan().units
        for each in unit.duplicates
    ]
    assert found == [(0, 1500, first), (1, 0, first), (1, 1, first), (1, 2, first)]


@given(st.binary(min_size=1, max_size=60), st.integers(1, 60), st.integers(1, 9))
def test_lines_are_all_bytes_of_a_file_in_order(data: bytes, longest: int, size: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms_of_lines, "LONGEST_RECORD", longest)
        patch.setattr(forms_of_lines, "_BUFFER_BYTES", size)
        path = Path(folder) / "rows"
        path.write_bytes(data)
        file = StoredFile(ShardRef(uri=path.as_uri()), Locator((path.parent.as_uri(),), {}))
        found = list(forms_of_lines.lines(file))
        at = found[-1].start if found else len(data)
        later = list(forms_of_lines.lines(file, at, len(data), len(found)))
    begin = 3 if data.startswith(BYTE_ORDER_MARK) else 0
    expected = data[begin:].split(b"\n")
    expected = [line + b"\n" for line in expected[:-1]] + [line for line in expected[-1:] if line]
    assert [data[line.start : line.stop] for line in found] == expected
    assert [line.data for line in found] == [
        None if len(line) > longest else line for line in expected
    ]
    assert [line.number for line in found] == list(range(1, len(found) + 1))
    assert later == found[-1:]
