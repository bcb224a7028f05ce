"""Folders of raw files: every layout is recognized, and equal rows are packed into equal bytes."""

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cmcl.client import InvalidArgument
from cmcl.client.files import raw_path
from cmcl.client.raw_folder import RawFolder, packed, read_raw_folder, write_manifest
from cmcl.contract.modality import ModalityPair

PAIR = ModalityPair(first="image", second="text")
SOUNDS = ModalityPair(first="audio", second="caption")
PLACES = ModalityPair(first="location", second="text")


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def coco(folder: Path) -> None:
    document = {
        "images": [{"id": 7, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": " a bird "},
            {"id": 2, "image_id": 7, "caption": "two birds"},
        ],
    }
    write(folder, {"annotations/captions_val.json": json.dumps(document), "val/b.jpg": "b"})


def flickr_csv(folder: Path) -> None:
    rows = (
        "image_name| comment_number| comment\nb.jpg| 0| a bird | in a tree\nb.jpg| 1| two birds\n"
    )
    write(folder, {"results.csv": rows, "images/b.jpg": "b"})


def flickr_token(folder: Path) -> None:
    write(folder, {"results_20130124.token": "b.jpg#0\ta bird\nb.jpg#1\ttwo birds\n", "b.jpg": "b"})


def clotho(folder: Path) -> None:
    rows = "file_name,caption_1,caption_2\nrain on roof.wav,it rains,rain falls\n"
    write(folder, {"clotho_captions_evaluation.csv": rows, "evaluation/rain on roof.wav": "r"})


def audiocaps(folder: Path) -> None:
    rows = "audiocap_id,youtube_id,start_time,caption\n91,xyz,30,a dog barks\n92,gone,0,silence\n"
    write(folder, {"test.csv": rows, "audio/xyz_30.wav": "w"})


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
    (coco, "COCO", PAIR, ["coco-1", "coco-2"], 0),
    (flickr_csv, "Flickr30k", PAIR, ["b-0", "b-1"], 0),
    (flickr_token, "Flickr30k", PAIR, ["b-0", "b-1"], 0),
    (clotho, "Clotho", SOUNDS, ["rain on roof-1", "rain on roof-2"], 0),
    (audiocaps, "AudioCaps", SOUNDS, ["audiocaps-91"], 1),
    (captions, "captions", PAIR, ["a-1", "a-2", "sub/b"], 0),
    (classes, "classes", PAIR, ["crow/2.jpg", "great_tit/1.jpg"], 0),
    (huggingface, "manifest", PAIR, ["row-00000001"], 1),
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


def test_texts_and_labels_are_those_of_the_layout(tmp_path: Path) -> None:
    flickr_csv(tmp_path / "flickr")
    classes(tmp_path / "classes")
    coco(tmp_path / "coco")
    assert read(tmp_path / "flickr").rows[0].items["text"] == "a bird | in a tree"
    assert [row.items["text"] for row in read(tmp_path / "coco").rows] == ["a bird", "two birds"]
    tit = read(tmp_path / "classes").rows[1]
    assert (tit.items["text"], tit.label) == ("great tit", "great_tit")


def test_numbers_of_a_manifest_stay_numbers(tmp_path: Path) -> None:
    rows = '{"id": "p", "location": [48.85, 2.35], "text_file_name": "p.txt"}\n'
    write(tmp_path, {"metadata.jsonl": rows, "p.txt": "Paris"})
    assert read(tmp_path, PLACES).rows[0].items["location"] == (48.85, 2.35)


def test_numbers_in_csv_are_json_and_other_brackets_are_text(tmp_path: Path) -> None:
    rows = 'location,text_file_name\n"[48.85, 2.35]",p.txt\n[near Paris],p.txt\n'
    write(tmp_path, {"metadata.csv": rows, "p.txt": "Paris"})
    found = [row.items["location"] for row in read(tmp_path, PLACES).rows]
    assert found == [(48.85, 2.35), "[near Paris]"]
    [tar] = packed(read(tmp_path, PLACES), PLACES, "rows", tmp_path)
    with tarfile.open(tar) as opened:
        about = opened.extractfile("00000000.json").read()  # type: ignore[union-attr]
    assert json.loads(about) == {"id": "row-00000001", "location": [48.85, 2.35]}


def test_a_folder_of_another_kind_is_not_raw(tmp_path: Path) -> None:
    write(tmp_path, {"notes.md": "nothing"})
    assert read_raw_folder(tmp_path, PAIR) is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"metadata.jsonl": '{"file_name": "gone.jpg", "text": "x"}'}, "first missing file"),
        ({"metadata.jsonl": "[1]"}, "line 1: a row must be a JSON object"),
        ({"metadata.jsonl": "{"}, "cannot be read"),
        ({"metadata.jsonl": '{"id": "1", "text": "x"}'}, "no column 'image'"),
        ({"captions_x.json": "{}"}, "not a COCO file"),
        (
            {"metadata.jsonl": '{"image_file_name": "a", "text": ["a"]}'},
            "row 1: .* neither a text nor a list of numbers",
        ),
        (
            {"metadata.csv": "file_name,text\na.jpg,a red apple, on a table\n", "a.jpg": "a"},
            r"metadata.csv, row 1 \(line 2\): it has more or fewer fields",
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


def test_a_pair_without_a_text_needs_a_manifest(tmp_path: Path) -> None:
    captions(tmp_path)
    with pytest.raises(InvalidArgument, match="which side is the text"):
        read(tmp_path, ModalityPair(first="image", second="depth"))


def test_equal_rows_are_packed_into_equal_bytes(tmp_path: Path) -> None:
    captions(tmp_path / "one")
    captions(tmp_path / "two")
    digests = []
    for name in ("one", "two"):
        target = tmp_path / f"tars-{name}"
        target.mkdir()
        tars = list(packed(read(tmp_path / name), PAIR, "rows", target))
        digests.append([hashlib.sha256(tar.read_bytes()).hexdigest() for tar in tars])
    assert digests[0] == digests[1]


def test_a_tar_holds_each_row_as_members_of_one_key(tmp_path: Path) -> None:
    classes(tmp_path / "folder")
    [tar] = packed(read(tmp_path / "folder"), PAIR, "rows", tmp_path)
    with tarfile.open(tar) as opened:
        content = {each.name: opened.extractfile(each).read() for each in opened}  # type: ignore[union-attr]
    assert content["00000000.image.jpg"] == b"2"
    assert content["00000000.text.txt"] == b"crow"
    assert json.loads(content["00000000.json"]) == {"id": "crow/2.jpg", "label": "crow"}
    assert len(content) == 6


def test_tars_have_a_bounded_size(tmp_path: Path) -> None:
    captions(tmp_path / "folder")
    tars = list(packed(read(tmp_path / "folder"), PAIR, "rows", tmp_path, most_bytes=5000))
    assert [tar.name for tar in tars] == ["rows-00001.tar", "rows-00002.tar", "rows-00003.tar"]


def test_a_written_manifest_reads_as_the_same_rows(tmp_path: Path) -> None:
    captions(tmp_path)
    before = read(tmp_path)
    write_manifest(before, tmp_path / "metadata.jsonl")
    after = read(tmp_path)
    assert after.layout == "manifest"
    assert [(row.id, row.label) for row in after.rows] == [
        (row.id, row.label) for row in before.rows
    ]
    assert [row.items["image"].resolve() for row in after.rows] == [  # type: ignore[union-attr]
        row.items["image"] for row in before.rows
    ]


def test_only_folders_without_shards_and_manifests_are_raw(tmp_path: Path) -> None:
    captions(tmp_path / "raw")
    write(tmp_path, {"shards/a.parquet": "P", "m.jsonl": "{}", "f.parquet": "P"})
    assert raw_path(tmp_path / "raw") == tmp_path / "raw"
    assert raw_path(tmp_path / "m.jsonl") == tmp_path / "m.jsonl"
    assert raw_path(tmp_path / "shards") is None
    assert raw_path(tmp_path / "f.parquet") is None
    assert raw_path("s3://bucket/folder") is None
