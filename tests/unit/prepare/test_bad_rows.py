"""Each row that cannot be used has a verdict with its id, its file, its position and a reason."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.fakes.raw_files import (
    DEPTH,
    IMAGE,
    PLACE,
    TEXT,
    csv_bytes,
    jsonl,
    parquet_bytes,
    picture,
    side,
    tar_bytes,
)
from tests.unit.prepare.conftest import NewDataset

GOOD = {"id": "good", "place": [1, 2], "text": "a"}


def place_rows(*rows: object) -> bytes:
    return jsonl([GOOD, *rows])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"place": [1, 2], "text": "b"}, "it has no id"),
        ({"id": "", "place": [1, 2], "text": "b"}, "it has no id"),
        ({"id": None, "place": [1, 2], "text": "b"}, "it has no id"),
        ({"id": 1.5, "place": [1, 2], "text": "b"}, "its id must be text, is a number"),
        (
            {"id": "i" * 5000, "place": [1, 2], "text": "b"},
            "its id has 5000 bytes; at most 4096 are permitted",
        ),
        (b"{not json", "the row is not JSON: "),
        (b"[1, 2]", "the row is not a JSON object"),
        (b'{"id": "x", "text": "\xff"}', "the row is not UTF-8: byte 21 of it is invalid"),
        (b'{"id": "x", "text": ' + b"[" * 100_000 + b"}", "the row is not JSON: "),
        (b'{"id": "x", "text": "' + b"a" * (65 << 20) + b'"}', "the row has more than 67108864 by"),
    ],
)
def test_a_row_without_a_readable_id(dataset: NewDataset, row: object, reason: str) -> None:
    data = dataset(PLACE, TEXT)
    uri = data.add("rows.jsonl", place_rows(row))
    (rejected,) = data.read().rejected
    assert (rejected.id, rejected.file, rejected.row) == (None, uri, 1)
    assert rejected.reason.startswith(reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"place": [1, 2]}, "it has no text"),
        ({"place": [1, 2], "text": ""}, "its text is empty"),
        ({"place": [1, 2], "text": " \n"}, "its text is empty"),
        ({"place": [1, 2], "text": 7}, "its text must be text, is a number"),
        (
            {"place": [1, 2], "text": "a" * (1 << 20)},
            "its text has 1048576 bytes; at most 1000 are permitted",
        ),
        ({"text": "b"}, "it has no place"),
        ({"text": "b", "place": []}, "its place has no numbers"),
        ({"text": "b", "place": [1, None]}, "its place has null among the numbers"),
        ({"text": "b", "place": [1, "2"]}, "its place has text among the numbers"),
        ({"text": "b", "place": [1, True]}, "its place has a truth value among the numbers"),
        ({"text": "b", "place": "north"}, "its place is no list of numbers: 'north'"),
        ({"text": "b", "place": {"lat": 1}}, "its place must be a list of numbers, is an object"),
        ({"text": "b", "place": "nan 1"}, "its place has NaN or infinity"),
        (
            {"text": "b", "text_file_name": "b.txt", "place": [1]},
            "it has both text and text_file_name",
        ),
        ({"text_file_name": "b.txt", "place": [1]}, "its text is missing: there is no object"),
    ],
)
def test_a_row_with_an_item_that_cannot_be_used(
    dataset: NewDataset, row: dict[str, object], reason: str
) -> None:
    data = dataset(PLACE, side("text", "text", max_item_bytes=1000))
    uri = data.add("rows.jsonl", place_rows({"id": "bad", **row}))
    read = data.read()
    (rejected,) = read.rejected
    assert (rejected.id, rejected.file, rejected.row) == ("bad", uri, 1)
    assert rejected.reason.startswith(reason)
    assert read.ids == ["good"]


@pytest.mark.parametrize(
    ("depth", "reason"),
    [
        ([1, 2], "its depth has 2 numbers, the model declares 3"),
        ("1 nan 2", "its depth has NaN or infinity"),
        ([1e39, 0, 0], "its depth has NaN or infinity"),
        ([0, 0, 0], "its depth is all zeros; permitted are lengths from 1e-12 to 1e+18"),
        ([1e-20, 0, 0], "its depth has length 1e-20; permitted"),
    ],
)
def test_features_of_a_modality_without_encoder(
    dataset: NewDataset, depth: object, reason: str
) -> None:
    data = dataset(DEPTH, TEXT)
    good = {"id": "good", "depth": [1, 2, 3], "text": "a"}
    data.add("rows.jsonl", jsonl([good, {"id": "bad", "depth": depth, "text": "b"}]))
    read = data.read()
    assert list(read.reasons) == ["bad"]
    assert read.reasons["bad"].startswith(reason)
    item = read.rows[0].items[0]
    assert isinstance(item, np.ndarray)
    assert np.array_equal(item, np.array([1, 2, 3], np.float32))


def test_labels_are_for_all_rows_of_a_file_or_none(dataset: NewDataset) -> None:
    data = dataset(PLACE, TEXT)
    base = {"place": [1], "text": "a"}
    labels: list[dict[str, object]] = [{"label": "x"}, {}, {"label": 7}, {"label": ""}]
    labels.append({"label": "l" * 5000})
    data.add("a.jsonl", jsonl([{"id": f"a{at}", **base, **each} for at, each in enumerate(labels)]))
    data.add("b.jsonl", jsonl([{"id": "b", **base}]))
    read = data.read()
    assert [(row.id, row.label) for row in read.rows] == [("a0", "x"), ("b", None)]
    assert read.reasons == {
        "a1": "it has no label, and other rows of the file have one: label all rows, or none",
        "a2": "its label must be text, is a number",
        "a3": "it has no label",
        "a4": "its label has 5000 bytes; at most 4096 are permitted",
    }


def test_of_rows_with_equal_ids_the_first_one_stays(dataset: NewDataset) -> None:
    data = dataset(PLACE, TEXT)
    base = {"place": [1], "text": "a"}
    first = data.add("a.jsonl", jsonl([{"id": "x", **base}, {"id": "y", **base}]))
    data.add(
        "b.csv", csv_bytes([{"id": "z", **base}, {"id": "x", **base}], ["id", "place", "text"])
    )
    data.add("c.jsonl", jsonl([{"id": "x", **base}]))
    read = data.read()
    assert read.ids == ["x", "y", "z"]
    assert [(row.id, row.file[-5:], row.row) for row in read.rejected] == [
        ("x", "b.csv", 1),
        ("x", "jsonl", 0),
    ]
    reason = f"an earlier row has its id, in {first}; ids are unique over all files of a dataset"
    assert {row.reason for row in read.rejected} == {reason}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.png", "its image is missing: there is no object 'missing.png'"),
        ("http://10.0.0.1/a.png", "permitted schemes are file:// and s3://"),
        ("https://example.org/a.png", "permitted schemes are file:// and s3://"),
        ("ftp://example.org/a.png", "permitted schemes are file:// and s3://"),
        ("data:image/png;base64,AAAA", "its image: "),
        ("upload:another", "its image: "),
        ("s3://another-bucket/a.png", "outside the allowed prefixes"),
        ("file:///etc/passwd", "outside the allowed prefixes"),
        ("file://host/a.png", "write file:///absolute/path"),
        ("/etc/passwd", "is an absolute path: write file:///path"),
        ("../outside.png", "has '..': name files below the folder of the manifest"),
        ("pictures/../../outside.png", "has '..'"),
        ("pictures", "its image is missing"),
        ("pictures/", "names a folder, not an object"),
        ("link.png", "its image"),
        ("a\0b.png", "has a character that addresses may not have"),
        ("n" * 300 + ".png", "the name of its image is too long"),
        ("n/" * 600 + "a.png", "the name of its image is too long"),
        ("empty.png", "its image is empty"),
    ],
)
def test_names_of_files_that_are_not_followed(
    dataset: NewDataset, name: str, reason: str, tmp_path: Path
) -> None:
    data = dataset(IMAGE, TEXT)
    data.file("pictures/good one%.png", picture())
    data.file("empty.png", b"")
    (tmp_path / "outside.png").write_bytes(picture())
    (data.folder / "link.png").symlink_to(tmp_path / "outside.png")
    rows = [("good", "./pictures/good one%.png"), ("bad", name)]
    data.add("rows.jsonl", jsonl([{"id": i, "image_file_name": n, "text": "a"} for i, n in rows]))
    read = data.read()
    assert read.ids == ["good"]
    assert list(read.reasons) == ["bad"]
    assert reason in read.reasons["bad"]


def test_a_file_above_the_limit_is_not_read_to_its_end(dataset: NewDataset) -> None:
    data = dataset(side("image", "image", max_item_bytes=1000), TEXT)
    data.file("large.png", b"x" * 5_000_000)
    data.file("good.png", picture())
    names = ("good.png", "large.png")
    data.add("r.jsonl", jsonl([{"id": n, "image_file_name": n, "text": "a"} for n in names]))
    expected = "its image has more than 1000 bytes; at most 1000 are permitted"
    assert data.read().reasons == {"large.png": expected}


def test_pictures_and_texts_that_cannot_be_decoded(dataset: NewDataset) -> None:
    data = dataset(IMAGE, TEXT)
    files = {"good": picture(), "cut off": picture(size=(90, 90))[:-40], "none": b"GIF, or so"}
    for name, content in files.items():
        data.file(f"{name}.png", content)
    data.file("latin.txt", b"ab \xe9")
    data.file("marked.txt", b"\xef\xbb\xbfab \xc3\xa9\r\n")
    rows = [{"id": n, "image_file_name": f"{n}.png", "text": "a"} for n in files]
    rows += [
        {"id": name, "image_file_name": "good.png", "text_file_name": f"{name}.txt"}
        for name in ("latin", "marked")
    ]
    data.add("rows.jsonl", jsonl(rows))
    read = data.read()
    assert read.ids == ["good", "marked"]
    assert read.rows[1].items[1] == "ab é"
    assert read.reasons["latin"] == "its text is not UTF-8: byte 3 is invalid"
    assert "image" in read.reasons["cut off"]
    assert "no image that can be read" in read.reasons["none"]


def test_rows_of_csv(dataset: NewDataset) -> None:
    data = dataset(PLACE, TEXT)
    lines = [
        b"id,place,text",
        b'a,"1, 2","two\r\nlines, and a ""quote"""',
        b"b,1;2",
        b"",
        b"c,1 2,",
    ]
    lines += [b"d,1 2,ab \xe9", b"e,,x", b"f,x,x", b"g,1 2,x,y"]
    data.add("rows.csv", b"\r\n".join(lines))
    read = data.read()
    assert [(row.id, row.items[0], row.items[1]) for row in read.rows] == [
        ("a", (1.0, 2.0), 'two\r\nlines, and a "quote"')
    ]
    assert [(row.id, row.row, row.reason) for row in read.rejected] == [
        ("b", 1, "the row has 2 fields, and the header has 3"),
        ("c", 2, "it has no text"),
        ("d", 3, "its text is not UTF-8: character 3 is invalid"),
        ("e", 4, "it has no place"),
        ("f", 5, "its place is no list of numbers: 'x'"),
        ("g", 6, "the row has 4 fields, and the header has 3"),
    ]


def test_rows_of_parquet(dataset: NewDataset) -> None:
    data = dataset(IMAGE, TEXT)
    data.file("named.png", picture(1))
    media = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": picture(), "path": "x.png"}, {"bytes": None, "path": "named.png"}, None]
    images += [{"bytes": None, "path": None}, {"bytes": b"", "path": None}]
    images += [{"bytes": picture(), "path": None}]
    texts = pa.array([b"a", b"b", b"c", b"d", b"e", b"\xff"]).cast(pa.binary()).view(pa.string())
    ids = pa.array(["0", "1", "2", "3", "4", "5"]).dictionary_encode()
    columns = {"id": ids, "image": pa.array(images, media), "text": texts, "other": [1] * 6}
    data.add("rows.parquet", parquet_bytes(columns))
    read = data.read()
    assert read.ids == ["0", "1"]
    assert read.reasons == {
        "2": "it has no image",
        "3": "it has no image",
        "4": "its image is empty",
        "5": "its text is not UTF-8: byte 0 is invalid",
    }


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def test_rows_of_tar(dataset: NewDataset) -> None:
    data = dataset(IMAGE, TEXT)
    files: list[tuple[str, bytes] | tarfile.TarInfo] = [
        ("./a.jpg", picture()),
        ("./a.txt", b"a\n"),
        ("b.png", picture()),
        link("b.txt", tarfile.SYMTYPE),
        link("c.png", tarfile.LNKTYPE),
        ("c.txt", b"c"),
        ("../d.png", picture()),
        ("../d.txt", b"d"),
        ("/e.png", picture()),
        ("/e.txt", b"e"),
        link("f.png", tarfile.CHRTYPE),
        ("g.png", picture()),
        ("g.jpg", picture()),
        ("g.txt", b"g"),
        ("h.txt", b"h"),
        ("h.json", b'{"text": "h", "id": "eight"}'),
        ("i.png", picture()),
        ("i.json", b"{"),
        ("j.image.png", picture()),
        ("j.text.txt", b"j"),
        ("j.cls", b"7"),
        ("README", b"no key"),
        ("k.flac", b""),
        ("folder/l.png", picture()),
        ("folder/l.txt", b""),
        ("a.png", picture()),
        ("a.txt", b"again"),
    ]
    uri = data.add("rows.tar", tar_bytes(files))
    read = data.read()
    assert read.ids == ["a", "j"]
    assert [row.row for row in read.rejected] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12]
    assert read.reasons == {
        "b": "member 'b.txt' is a link",
        "c": "member 'c.png' is a link",
        "../d": "member '../d.png' leaves the archive",
        "/e": "member '/e.png' leaves the archive",
        "f": "member 'f.png' is no regular file",
        "g": "members 'g.png' and 'g.jpg' are both its image",
        "eight": "its text is in member 'h.txt' and in its JSON as well",
        "i": "member 'i.json' is not JSON: unexpected end of data: line 1 column 2 (char 1)",
        "k": "none of its members ['k.flac'] is of the pair",
        "folder/l": "its text is empty",
        "a": f"an earlier row has its id, in {uri}; ids are unique over all files of a dataset",
    }
    assert [row.place for row in read.rejected][:3] == [
        "rows.tar, b.png",
        "rows.tar, c.png",
        "rows.tar, ../d.png",
    ]


def test_a_row_is_named_by_what_the_user_has(dataset: NewDataset) -> None:
    """By the line of a file; by the row where there are no lines; by its source where the tar has it."""
    data = dataset(IMAGE, TEXT)
    header = b'id,image_file_name,text,note\na,a.png,"x","two\nlines"\n\n'
    data.add("My rows.csv", header + b"b,trunc.png,x,y\n")
    lines = [b'{"id": "c"}', b"", b'{"id": "d", "text": "x", "image_file_name": "d.png"}']
    data.add("rows.jsonl", b"\n".join(lines))
    media = pa.array([{"bytes": b"no", "path": "e.png"}])
    data.add("rows.parquet", parquet_bytes({"id": ["e"], "image": media, "text": ["x"]}))
    about = {"id": ["f", "g"], "text": ["x", "y"], "__source__": ["m.csv line 2", "m.csv line 9"]}
    members = [("0.png", b"no"), ("0.json", json.dumps(about).encode())]
    members += [("1.png", b"no"), ("1.json", b'{"text": "x", "id": "h", "__source__": "h.png"}')]
    data.add("rows.tar", tar_bytes(members))
    data.file("a.png", b"no")
    assert {row.id: row.place for row in data.read().rejected} == {
        "a": "My rows.csv line 2, a.png",
        "b": "My rows.csv line 5, trunc.png",
        "c": "rows.jsonl line 1",
        "d": "rows.jsonl line 3, d.png",
        "e": "rows.parquet row 1",
        "f": "m.csv line 2",
        "g": "m.csv line 9",
        "h": "h.png",
    }


def test_lines_are_counted_over_units(dataset: NewDataset) -> None:
    # Of items that may be so large, a unit has 64 rows.
    data, base = dataset(PLACE, side("text", "text", max_item_bytes=256 << 20)), {"place": [1]}
    rows = [{"id": str(at), "text": "" if at % 60 == 59 else "x", **base} for at in range(180)]
    data.add("a.jsonl", jsonl(rows).replace(b"\n", b"\n\n"))
    data.add(
        "b.csv",
        csv_bytes([{**row, "id": f"b{row['id']}"} for row in rows], ["id", "place", "text"]),
    )
    assert len(data.plan().units) > 4
    assert [row.place for row in data.read().rejected] == [
        *("a.jsonl line 119", "a.jsonl line 239", "a.jsonl line 359"),
        *("b.csv line 61", "b.csv line 121", "b.csv line 181"),
    ]


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"text": []}, "its text is a list of 0 texts; 1 to 1000 are permitted"),
        ({"text": ["a"] * 1025}, "its text is a list of 1025 texts; 1 to 1000 are permitted"),
        ({"text": ["a", "b"], "id": ["x"]}, "its id is a list of 1, and its text one of 2"),
        ({"text": ["a"], "id": {}}, "its id must be text, is an object"),
    ],
)
def test_lists_of_texts_that_cannot_be_used(
    dataset: NewDataset, about: dict[str, object], reason: str
) -> None:
    data = dataset(IMAGE, TEXT)
    files = [("good.png", picture()), ("good.txt", b"a"), ("bad.png", picture())]
    data.add("rows.tar", tar_bytes([*files, ("bad.json", json.dumps(about).encode())]))
    read = data.read()
    assert read.ids == ["good"]
    assert read.reasons == {"bad": reason}


def test_a_text_of_a_list_that_cannot_be_used_leaves_out_its_row_alone(dataset: NewDataset) -> None:
    data = dataset(IMAGE, TEXT)
    about = json.dumps({"text": ["one", "", 3]}).encode()
    data.add("rows.tar", tar_bytes([("a.png", picture()), ("a.json", about)]))
    read = data.read()
    assert read.ids == ["a#1"]
    assert read.reasons == {"a#2": "its text is empty", "a#3": "its text must be text, is a number"}
