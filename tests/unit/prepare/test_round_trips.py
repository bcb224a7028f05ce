"""Equal rows are read equally from every form, and have equal digests."""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.raw_files import (
    DEPTH,
    IMAGE,
    PLACE,
    TEXT,
    Dataset,
    Read,
    csv_bytes,
    jsonl,
    parquet_bytes,
    picture,
    same_item,
    tar_bytes,
)
from tests.unit.prepare.conftest import NewDataset
from workers.encoders.media import Audio, Video, packed, unpacked
from workers.sandbox.child import Child

ids = st.text("abcö-_7", min_size=1, max_size=8).filter(lambda text: not text.startswith("-"))
# Keys of a tar end at the first dot, and a text that is stripped is empty.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: bool(text.encode().strip()) and text.strip() == text
)
small = st.floats(-1e6, 1e6, width=32).map(lambda value: value + 0.0)
features = st.lists(small, min_size=3, max_size=3).filter(lambda values: math.hypot(*values) > 1e-6)


@st.composite
def feature_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    names = draw(st.lists(ids, min_size=1, max_size=12, unique=True))
    has_labels = draw(st.booleans())
    rows = []
    for name in names:
        row = {"id": name, "depth": draw(features), "text": draw(texts)}
        rows.append(row | ({"label": draw(ids)} if has_labels else {}))
    return rows


def forms_of(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """The same rows in every form, and with other types of columns."""
    names = list(rows[0])
    plain = {name: [row[name] for row in rows] for name in names}
    lists = pa.array(plain["depth"], pa.large_list(pa.float64()))
    fixed = pa.array(plain["depth"], pa.list_(pa.float32(), 3))
    coded = {
        name: pa.array(plain[name], pa.large_string()).dictionary_encode()
        for name in names
        if name != "depth"
    }
    members = []
    for at, row in enumerate(rows):
        rest = {name: value for name, value in row.items() if name not in ("text", "depth")}
        members += [
            (f"{at:04d}.json", json.dumps(rest).encode()),
            (f"{at:04d}.depth.json", json.dumps(row["depth"]).encode()),
            (f"{at:04d}.txt", row["text"].encode()),
        ]
    return {
        "jsonl": jsonl(rows),
        "csv": csv_bytes(rows, names),
        "lists.parquet": parquet_bytes({**plain, "depth": lists}, row_group_size=5),
        "coded.parquet": parquet_bytes({**coded, "depth": fixed}),
        "tar": tar_bytes(members),
    }


def content(read: Read) -> list[tuple[Any, ...]]:
    """All of the rows but where they were."""
    return [
        (
            row.id,
            row.label,
            np.asarray(row.items[0]).tolist(),
            row.items[1],
            row.keys[0],
            row.keys[1],
        )
        for row in read.rows
    ]


@settings(max_examples=12)
@given(rows=feature_rows())
def test_equal_rows_of_every_form_are_equal_and_have_equal_digests(
    reader_child: Child, rows: list[dict[str, Any]]
) -> None:
    reads = {}
    for name, data in forms_of(rows).items():
        with TemporaryDirectory() as folder:
            dataset = Dataset(Path(folder), reader_child, DEPTH, TEXT)
            dataset.add(f"rows.{name}", data)
            reads[name] = dataset.read()
    for name, read in reads.items():
        assert read.rejected == [], name
        assert [row.id for row in read.rows] == [row["id"] for row in rows], name
        assert [row.items[1] for row in read.rows] == [row["text"] for row in rows], name
        assert content(read) == content(reads["jsonl"]), name
        assert read.digests == reads["jsonl"].digests, name


def test_pictures_of_every_form_are_equal_and_have_equal_digests(dataset: NewDataset) -> None:
    pictures = [picture(colour) for colour in (1, 2, 2, 300)]
    keys = [f"p{at}" for at in range(4)]
    captions = [f"a caption {at // 2}" for at in range(4)]
    data = dataset(IMAGE, TEXT)
    for key, content_ in zip(keys, pictures, strict=True):
        data.file(f"pictures/{key}.png", content_)
    named = [
        {"id": key, "image_file_name": f"pictures/{key}.png", "text": text}
        for key, text in zip(keys, captions, strict=True)
    ]
    absolute = [
        {**row, "image_file_name": f"{data.folder.resolve().as_uri()}/{row['image_file_name']}"}
        for row in named
    ]
    structs = [{"bytes": each, "path": "not used"} for each in pictures]
    members = []
    for key, each, text in zip(keys, pictures, captions, strict=True):
        members += [(f"{key}.png", each), (f"{key}.txt", f"{text}\n".encode())]
    forms = {
        "a.jsonl": jsonl(named),
        "b.jsonl": jsonl(absolute),
        "c.csv": csv_bytes(named, ["id", "image_file_name", "text"]),
        "d.parquet": parquet_bytes({"id": keys, "image": structs, "text": captions}),
        "e.parquet": parquet_bytes({"id": keys, "image": pictures, "text": captions}),
        "f.tar": tar_bytes(members),
    }
    digests: set[tuple[Any, ...]] = set()
    for name, each in forms.items():
        data.refs.clear()
        data.add(name, each)
        read = data.read()
        assert read.rejected == []
        assert read.ids == keys
        assert [row.items[0].getpixel((0, 0)) for row in read.rows] == [  # type: ignore[union-attr]
            (1, 0, 7),
            (2, 0, 7),
            (2, 0, 7),
            (44, 1, 7),
        ]
        digests.add(tuple(read.digests))
    assert len(digests) == 1


def test_whole_numbers_are_ids_in_every_form(dataset: NewDataset) -> None:
    numbers = (3, 10)
    rows = [{"id": at, "place": [at, 0.5], "text": "a"} for at in numbers]
    data = dataset(PLACE, TEXT)
    places = [[float(at), 0.5] for at in numbers]
    columns = {"id": list(numbers), "place": places, "text": ["a", "a"]}
    digests: set[tuple[Any, ...]] = set()
    for name, each in {
        "a.jsonl": jsonl(rows),
        "b.csv": csv_bytes(rows, ["id", "place", "text"]),
        "c.parquet": parquet_bytes(columns),
    }.items():
        data.refs.clear()
        data.add(name, each)
        read = data.read()
        assert [(row.id, row.items[0]) for row in read.rows] == [("3", (3, 0.5)), ("10", (10, 0.5))]
        digests.add(tuple(read.digests))
    assert len(digests) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"id": "other"},
        {"label": "other"},
        {"text": "other"},
        {"place": [1, 2.5]},
    ],
)
def test_other_rows_have_other_digests(dataset: NewDataset, other: dict[str, object]) -> None:
    data = dataset(PLACE, TEXT)
    row = {"id": "a", "label": "l", "place": [1, 2], "text": "t"}
    data.add("rows.jsonl", jsonl([row]))
    before = data.read().digests
    assert data.read().digests == before
    data.add("rows.jsonl", jsonl([{**row, **other}]))
    del data.refs[0]
    assert data.read().digests != before


def test_a_left_out_row_does_not_change_the_digest_of_the_others(dataset: NewDataset) -> None:
    data = dataset(PLACE, TEXT)
    row = {"id": "a", "place": [1, 2], "text": "t"}
    data.add("rows.jsonl", jsonl([row]))
    before = data.read()
    data.add("more.jsonl", jsonl([{"id": "b"}, row, {"id": "c", "place": [1], "text": ""}]))
    del data.refs[0]
    after = data.read()
    assert (after.digests, len(after.rejected)) == (before.digests, 2)


@pytest.mark.parametrize(
    "item",
    [
        "text",
        (1.0, -2.5),
        np.array([1, 2, 3], np.float32),
        Audio(np.ones((2, 5), np.float32), 16_000),
        Video(np.arange(2 * 3 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 3, 4, 5, 3), np.ones((2, 3))),
    ],
)
def test_items_pass_from_the_child_unchanged(item: Any) -> None:
    header, parts = packed(item)
    body = b"".join(bytes(part) for part in parts)
    assert header["bytes"] == len(body)
    back = unpacked(json.loads(json.dumps(header)), memoryview(body))
    if isinstance(item, Audio | Video):
        assert type(back) is type(item)
        for name, value in vars(item).items():
            assert np.array_equal(getattr(back, name), value), name
    else:
        assert same_item(back, item)
