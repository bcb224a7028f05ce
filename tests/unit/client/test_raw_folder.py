"""Folders of raw files: every layout is recognized, and equal rows are packed into equal bytes."""

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cmcl.client import InvalidArgument
from cmcl.client.files import raw_path
from cmcl.client.raw_folder import RawFolder, packed, read_raw_folder
from cmcl.contract.modality import ModalityPair

PAIR = ModalityPair(first="image", second="text")
SOUNDS = ModalityPair(first="audio", second="caption")
PLACES = ModalityPair(first="location", second="text")


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def captions(folder: Path) -> None:
    write(
        folder, {"a.jpg": "a", "a.txt": "a bird\n\ntwo birds\n", "sub/b.png": "b", "sub/b.txt": "x"}
    )


def classes(folder: Path) -> None:
    write(folder, {"great_tit/1.jpg": "1", "crow/2.jpg": "2", ".hidden/3.jpg": "3"})


def huggingface(folder: Path) -> None:
    rows = '{"file_name": "a.jpg", "text": "a bird", "label": "bird"}\n\n{"file_name": "no.jpg", "text": "?"}\n'
    write(folder, {"metadata.jsonl": rows, "a.jpg": "a"})


def manifest_csv(folder: Path) -> None:
    rows = "id,image_file_name,text\nx,sub/a.jpg,a bird\n"
    write(folder, {"manifest.csv": rows, "sub/a.jpg": "a"})


# Layout, pair, ids of the rows, number of missing files.
FOUND = [
    (captions, "captions", PAIR, ["a.jpg#1", "a.jpg#2", "sub/b.png"], 0),
    (classes, "classes", PAIR, ["crow/2.jpg", "great_tit/1.jpg"], 0),
    (huggingface, "manifest", PAIR, ["metadata.jsonl:1"], 1),
    (manifest_csv, "manifest", PAIR, ["x"], 0),
]


@pytest.mark.parametrize(
    ("make", "layout", "pair", "ids", "missing"), FOUND, ids=lambda value: str(value)[:20]
)
def test_each_layout_is_recognized_with_its_rows(
    tmp_path: Path,
    make: Callable[[Path], None],
    layout: str,
    pair: ModalityPair,
    ids: list[str],
    missing: int,
) -> None:
    make(tmp_path)
    found = read(tmp_path, pair)
    assert (found.layout, [row.id for row in found.rows], len(found.missing)) == (
        layout,
        ids,
        missing,
    )
    assert all(set(row.items) == set(pair.modalities) for row in found.rows)


def read(path: Path, pair: ModalityPair = PAIR) -> RawFolder:
    found = read_raw_folder(path, pair)
    assert found is not None
    return found


def tars(found: RawFolder, into: Path, pair: ModalityPair = PAIR) -> list[Path]:
    return [step.tar for step in packed(found, pair, "rows", into) if step.tar]


def members(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as opened:
        return {each.name: opened.extractfile(each).read() for each in opened}  # type: ignore[union-attr]


def test_numbers_in_csv_are_json_and_other_brackets_are_text(tmp_path: Path) -> None:
    rows = 'location,text_file_name\n"[48.85, 2.35]",p.txt\n[near Paris],p.txt\n'
    write(tmp_path, {"metadata.csv": rows, "p.txt": "Paris"})
    found = [row.items["location"] for row in read(tmp_path, PLACES).rows]
    assert found == [(48.85, 2.35), "[near Paris]"]
    [tar] = tars(read(tmp_path, PLACES), tmp_path, PLACES)
    with tarfile.open(tar) as opened:
        about = opened.extractfile("00000000.json").read()  # type: ignore[union-attr]
    assert json.loads(about) == {
        "id": "metadata.csv:2",
        "__source__": "metadata.csv line 2, p.txt",
        "location": [48.85, 2.35],
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is empty"),
        ({".hidden/a.jpg": "a"}, "is empty"),
        (
            {"notes.md": "nothing"},
            r"has no pictures, which modality 'image' takes, .*; it has 1 file",
        ),
        (
            {"a.jpg": "a", "b.png": "b", "c.wav": "c", "d.txt": "d"},
            "has 2 pictures, and no texts beside them: a.txt beside a.jpg is missing",
        ),
        ({"a.ogg": "a", "a.txt": "a"}, r"has no pictures, .*; it has 1 sound, 1 text"),
    ],
)
def test_a_folder_without_a_known_layout_is_refused_with_what_is_missing(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    write(tmp_path, files)
    with pytest.raises(InvalidArgument, match=message):
        read_raw_folder(tmp_path, PAIR)


def test_only_files_that_the_modality_takes_are_items(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        write(tmp_path, {f"{stem}.png": "p", f"{stem}.ogg": "s", f"{stem}.txt": "t"})
    write(tmp_path, {"no text.png": "p", "no file.txt": "t"})
    found = read(tmp_path)
    assert [(row.id, row.items["image"]) for row in found.rows] == [
        ("a.png", tmp_path / "a.png"),
        ("b.png", tmp_path / "b.png"),
    ]
    assert found.notes == [
        "left out: 1 picture without a text of the same name (no text.png)",
        "left out: 1 text without a file for 'image' of the same name (no file.txt)",
        "left out: 2 sounds, which modality 'image' does not take (a.ogg, b.ogg)",
    ]
    heard = read_raw_folder(tmp_path, SOUNDS)
    assert heard is not None
    assert [row.id for row in heard.rows] == ["a.ogg", "b.ogg"]


def test_the_encoder_says_what_a_modality_of_any_name_takes(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": "p", "a.ogg": "s", "a.txt": "t"})
    pair = ModalityPair(first="bark", second="words")
    with pytest.raises(InvalidArgument, match="which side is the text"):
        read_raw_folder(tmp_path, pair)
    with pytest.raises(InvalidArgument, match=r"1 sound, 1 picture: which of them .* 'bark' take"):
        read_raw_folder(tmp_path, pair, {"words": "text"})
    found = read_raw_folder(tmp_path, pair, {"words": "text", "bark": "audio"})
    assert found is not None
    assert [row.id for row in found.rows] == ["a.ogg"]


def test_no_two_rows_of_captions_have_one_id(tmp_path: Path) -> None:
    write(
        tmp_path, {"a.png": "p", "a.jpg": "j", "a.txt": "one\ntwo", "a-1.png": "q", "a-1.txt": "x"}
    )
    assert [row.id for row in read(tmp_path).rows] == [
        *("a-1.png", "a.jpg#1", "a.jpg#2"),
        *("a.png#1", "a.png#2"),
    ]


@pytest.mark.parametrize("name", ["a.png", "a.txt", "unused.bin", "sub"])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "outside", {"secret": "s", "b.txt": "t"})
    write(tmp_path / "folder", {"a.png": "p", "a.txt": "t"})
    link = tmp_path / "folder" / name
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "outside" / ("" if name == "sub" else "secret"))
    with pytest.raises(InvalidArgument, match=f"{name} is a link to .*outside.*, outside of"):
        read(tmp_path / "folder")


def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"folder/metadata.csv": "file_name,text\n../a.png,a\n", "a.png": "p"})
    with pytest.raises(InvalidArgument, match="outside of folder"):
        read(tmp_path / "folder")


def test_a_link_inside_the_folder_is_its_file(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": "p", "a.txt": "t", "b.txt": "u"})
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "c.png").symlink_to("gone.png")
    write(tmp_path, {"c.txt": "v"})
    found = read(tmp_path)
    assert [row.id for row in found.rows] == ["a.png", "b.png"]
    assert found.missing == [str(tmp_path / "c.png")]


def test_a_row_of_csv_is_named_by_its_line_also_below_a_field_of_several_lines(
    tmp_path: Path,
) -> None:
    rows = 'file_name,text\na.jpg,"two\nlines"\n\na.jpg,x\n'
    write(tmp_path, {"metadata.csv": rows, "a.jpg": "a"})
    assert [(row.id, row.source) for row in read(tmp_path).rows] == [
        ("metadata.csv:2", "metadata.csv line 2, a.jpg"),
        ("metadata.csv:5", "metadata.csv line 5, a.jpg"),
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"metadata.jsonl": '{"file_name": "gone.jpg", "text": "x"}'}, "first missing file"),
        ({"metadata.jsonl": "[1]"}, "line 1: a row must be a JSON object"),
        ({"metadata.jsonl": "{"}, "cannot be read"),
        ({"metadata.jsonl": '{"id": "1", "text": "x"}'}, "no column 'image'"),
        (
            {"metadata.jsonl": '{"image_file_name": "a", "text": ["a"]}'},
            "line 1: .* neither a text nor a list of numbers",
        ),
        (
            {"metadata.csv": "file_name,text\na.jpg,a red apple, on a table\n", "a.jpg": "a"},
            r"metadata.csv, line 2: it has more or fewer fields",
        ),
        ({"metadata.csv": "file_name,text\na.jpg\n", "a.jpg": "a"}, "more or fewer fields"),
        ({"metadata.csv": 'file_name,text\na.jpg,"a "red" one"\n', "a.jpg": "a"}, "cannot be read"),
    ],
)
def test_a_damaged_layout_is_an_error_that_names_the_file(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    write(tmp_path, files)
    with pytest.raises(InvalidArgument, match=message):
        read(tmp_path)


def test_equal_rows_are_packed_into_equal_bytes(tmp_path: Path) -> None:
    captions(tmp_path / "one")
    captions(tmp_path / "two")
    digests = []
    for name in ("one", "two"):
        target = tmp_path / f"tars-{name}"
        target.mkdir()
        made = tars(read(tmp_path / name), target)
        digests.append([hashlib.sha256(tar.read_bytes()).hexdigest() for tar in made])
    assert digests[0] == digests[1]


def test_a_tar_holds_each_row_as_members_of_one_key(tmp_path: Path) -> None:
    classes(tmp_path / "folder")
    [tar] = tars(read(tmp_path / "folder"), tmp_path)
    content = members(tar)
    assert content["00000000.image.jpg"] == b"2"
    assert content["00000000.text.txt"] == b"crow"
    assert json.loads(content["00000000.json"]) == {
        "id": "crow/2.jpg",
        "label": "crow",
        "__source__": "crow/2.jpg",
    }
    assert len(content) == 6


def test_a_picture_with_several_captions_is_packed_once(tmp_path: Path) -> None:
    write(tmp_path / "folder", {"a.jpg": "a" * 4096, "b.jpg": "b"})
    write(tmp_path / "folder", {"a.txt": "one\ntwo\nthree", "b.txt": "four"})
    [tar] = tars(read(tmp_path / "folder"), tmp_path)
    content = members(tar)
    assert sorted(content) == [
        *("00000000.image.jpg", "00000000.json"),
        *("00000001.image.jpg", "00000001.json", "00000001.text.txt"),
    ]
    assert json.loads(content["00000000.json"]) == {
        "id": ["a.jpg#1", "a.jpg#2", "a.jpg#3"],
        "text": ["one", "two", "three"],
        "__source__": "a.jpg",
    }


def test_more_captions_than_a_reader_takes_are_packed_with_another_copy(tmp_path: Path) -> None:
    lines = "\n".join(f"caption {at}" for at in range(2500))
    write(tmp_path / "folder", {"a.jpg": "a", "a.txt": lines, "b.jpg": "b"})
    write(tmp_path / "folder", {"b.txt": "\n".join("x" * 100_000 + str(at) for at in range(8))})
    [tar] = tars(read(tmp_path / "folder"), tmp_path)
    texts = [json.loads(data)["text"] for name, data in members(tar).items() if "json" in name]
    assert [len(each) for each in texts] == [1000, 1000, 500, 5, 3]
    assert [text for each in texts[:3] for text in each] == lines.splitlines()


def test_tars_have_a_bounded_size(tmp_path: Path) -> None:
    write(tmp_path / "folder", {f"{at}.{end}": "x" for at in range(3) for end in ("jpg", "txt")})
    found = packed(read(tmp_path / "folder"), PAIR, "rows", tmp_path, most_bytes=5000)
    names = [step.tar.name for step in found if step.tar]
    assert names == ["rows-00001.tar", "rows-00002.tar", "rows-00003.tar"]


def test_only_folders_without_shards_and_manifests_are_raw(tmp_path: Path) -> None:
    captions(tmp_path / "raw")
    write(tmp_path, {"shards/a.parquet": "P", "m.jsonl": "{}", "f.parquet": "P"})
    assert raw_path(tmp_path / "raw") == tmp_path / "raw"
    assert raw_path(tmp_path / "m.jsonl") == tmp_path / "m.jsonl"
    assert raw_path(tmp_path / "shards") is None
    assert raw_path(tmp_path / "f.parquet") is None
    assert raw_path("s3://bucket/folder") is None
