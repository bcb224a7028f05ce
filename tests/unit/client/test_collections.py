"""Collections from both clients and the command line, against a real replica."""

import json
import wave
from collections.abc import Iterator
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cmcl import Client, CmclError
from cmcl.cli.endpoint import RawItems
from cmcl.cli.errors import CommandError, Exit
from cmcl.client import InvalidArgument, Item, Query, WriteResult
from cmcl.contract.api.endpoint import Span
from cmcl.storage.local import LocalStore
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.responses import body
from tests.fakes.served_app import served
from tests.unit.client.command_line import Cmcl
from tests.unit.client.either import KINDS, connected
from tests.unit.client.rest_server import Answer, Asked, RestServer
from tests.unit.serve.collections.conftest import Searching, opened
from tests.unit.serve.collections.scene import feature


@pytest.fixture
def searching(tmp_path: Path) -> Iterator[Searching]:
    with opened(FlakyStore(LocalStore(tmp_path / "store"))) as replica:
        yield replica


@pytest.fixture
def url(searching: Searching) -> Iterator[str]:
    with served(searching.app) as address:
        yield address


@pytest.fixture
def cmcl(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cmcl:
    monkeypatch.setenv("CMCL_EMBEDDINGS_URL", url)
    return Cmcl(capsys)


def images(count: int) -> list[Item]:
    return [
        Item(
            f"image-{n}",
            "image",
            feature("image", n).tolist(),
            payload={"n": n, "name": f"number {n}"},
            parent=f"film-{n % 2}",
            start=n,
            end=n + 0.5,
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_added_found_and_removed(kind: str, url: str) -> None:
    with connected(kind, url) as client:
        made = client.create_collection(
            *("pictures", "scenes", "float16"),
            vector_type="float16",
            dimensions=None,
            text_fields=["name"],
        )
        assert (made.id, made.feature_type, made.revision) == ("pictures", "float16", 1)
        assert (made.vector_type, made.dimensions, made.text_fields) == ("float16", None, ["name"])
        written = client.add_items("pictures", iter(images(7)), batch_size=3)
        assert (written.rows, written.revision) == (1, 4)
        query = Query("image", feature("image", 5).tolist())
        found = client.search("pictures", query, 3, min_revision=written.revision)
        assert (found.data[0].id, found.data[0].payload) == (
            "image-5",
            {"n": 5, "name": "number 5"},
        )
        assert (found.version, found.revision, found.exact) == (1, 4, True)
        stored = {item.id: item for item in client.collection_items("pictures", "image")}
        assert sorted(stored) == sorted(f"image-{n}" for n in range(7))
        assert (stored["image-3"].modality, stored["image-3"].payload) == (
            "image",
            {"n": 3, "name": "number 3"},
        )
        assert list(client.collection_items("pictures", "text")) == []
        assert stored["image-3"].parent == "film-1"
        assert stored["image-3"].at == Span(start=3, end=3.5)
        best = client.search("pictures", query, by_parent=True)
        assert {hit.parent for hit in best.data} == {"film-0", "film-1"}
        by_words = client.search("pictures", words="4")
        assert [hit.id for hit in by_words.data] == ["image-4"]
        both = client.search("pictures", query, 1, words="4")
        assert both.data[0].id == "image-4", "it is in both rankings"
        removed = client.remove_items("pictures", ["image-5"])
        again = client.search(
            "pictures",
            query,
            modalities=["image"],
            filter={"field": "n", "range": {"gte": 4}},
            exact=True,
            min_revision=removed.revision,
            min_version=1,
        )
        assert {hit.id for hit in again.data} == {"image-4", "image-6"}
        assert [each.id for each in client.collections()] == ["pictures", "things"]
        table = pq.read_table(BytesIO(client.export_collection("pictures", "parquet")))
        assert sorted(table.column("id").to_pylist()) == sorted(set(stored) - {"image-5"})
        client.delete_collection("pictures")
        with pytest.raises(CmclError, match="no collection 'pictures'") as refused:
            client.collection("pictures")
        assert refused.value.status == 404


def test_large_items_are_written_in_bodies_that_the_endpoint_accepts(server: RestServer) -> None:
    server.always(
        (200, body(WriteResult, id="pictures", revision=2), {"x-cmcl-server": "embeddings"})
    )
    photos = [Item(f"photo-{n}", "image", data=bytes(9 << 20)) for n in range(4)]
    with Client(embeddings_url=server.url) as client:
        client.add_items("pictures", [*photos, *images(3)])
    sent = [[item["id"] for item in asked.body["items"]] for asked in server.asked]
    assert sent == [
        ["photo-0", "photo-1"],
        ["photo-2", "photo-3", "image-0", "image-1", "image-2"],
    ]


def test_the_command_line_covers_collections(cmcl: Cmcl, tmp_path: Path) -> None:
    lines, row, file = (tmp_path / name for name in ("items.jsonl", "row.json", "items.parquet"))
    items = [
        {name: value for name, value in asdict(each).items() if value is not None}
        for each in images(4)
    ]
    lines.write_text("\n".join(json.dumps(each) for each in items))
    row.write_text(json.dumps(feature("image", 2).tolist()))
    options = ["--vector-type=float16", "--text-field=name", "--text-field=title"]
    assert "name, title" in cmcl("collection", "create", "pictures", "--model=scenes", *options)
    assert "pictures is at revision 2" in cmcl("collection", "add", "pictures", str(lines))
    shown = cmcl("search", "pictures", "image", str(row), "--min-revision=2")
    assert shown.index("image-2") < shown.index("image-1")
    assert "by scenes@1, revision 2, exact" in shown
    among = ["--among=image", '--where={"field": "n", "equals": 3}', "--top-k=2"]
    document = cmcl.one("search", "pictures", "image", str(row), *among)
    assert [hit["id"] for hit in document["data"]] == ["image-3"]
    for query in ([], ["image", str(row)]):
        hits = cmcl.one("search", "pictures", *query, "--words=3")["data"]
        assert hits[0]["id"] == "image-3"
        assert len(hits) == (4 if query else 1)
    assert len(cmcl.one("search", "pictures", "image", str(row), "--by-parent")["data"]) == 2
    assert "image 4" in cmcl("collection", "show", "pictures")
    assert [each["id"] for each in cmcl.lines("collection", "list")] == ["pictures", "things"]
    cmcl("collection", "export", "pictures", "--out", str(file))
    assert pq.read_table(file).num_rows == 4
    assert cmcl.one("collection", "remove", "pictures", "image-1")["revision"] == 3
    cmcl("collection", "delete", "pictures", "--yes")
    assert "no collection 'pictures'" in cmcl("collection", "show", "pictures", code=1)


def test_results_show_where_in_its_parent_a_part_is_and_its_source(
    cmcl: Cmcl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No cell is folded.
    monkeypatch.setenv("COLUMNS", "120")
    row, lines = tmp_path / "row.json", tmp_path / "items.jsonl"
    row.write_text(json.dumps(feature("image", 1).tolist()))
    search = ("search", "things", "image", str(row))
    thumbnail, source = "/9j/AAAA", "https://example.org/a"
    parts = {
        "window": {"start": 12, "end": 16.25, "parent": "talk", "source": source},
        "page": {"start": 3, "end": 3, "parent": "paper", "thumbnail": thumbnail},
        "whole": {},
    }
    items = [
        {"id": name, "modality": "image", "feature": feature("image", n).tolist(), **part}
        for n, (name, part) in enumerate(parts.items(), start=1)
    ]
    lines.write_text("\n".join(map(json.dumps, items)))
    cmcl("collection", "add", "things", str(lines))
    before = cmcl.one(*search, "--min-revision=2")
    printed = cmcl(*search).replace("┃", "│")
    shown = [line.split("│") for line in printed.splitlines()]
    rows = [[cell.strip() for cell in line[1:-1]] for line in shown if len(line) > 1]
    by_id = {cells[1]: dict(zip(rows[0], cells, strict=True)) for cells in rows[1:]}
    places = {
        name: [by_id[name][column] for column in ("parent", "at", "source")] for name in parts
    }
    assert places["window"] == ["talk", "12 to 16.25", source]
    assert places["page"] == ["paper", "3", "-"]
    assert places["whole"] == ["-", "-", "-"]
    assert "thumbnail" not in rows[0]
    cmcl("collection", "remove", "things", "window", "page")
    without = cmcl(*search, "--min-revision=3")
    assert "whole" in without
    assert not {"parent", "at", "source"} & set(without.split())
    found = {each["id"]: each for each in before["data"]}
    assert (found["page"]["thumbnail"], found["window"]["thumbnail"]) == (thumbnail, None)
    assert found["page"]["at"] == {"start": 3, "end": 3}


def test_a_folder_of_files_becomes_items_with_their_names(tmp_path: Path) -> None:
    for name in ("b.jpg", "birds/jay.PNG", "b.txt", ".hidden.jpg", "notes.pdf"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    assert list(RawItems("image").read(tmp_path)) == [
        Item("b.jpg", "image", data=b"b.jpg"),
        Item("birds/jay.PNG", "image", data=b"birds/jay.PNG"),
    ]
    (one,) = RawItems("image").read(tmp_path / "b.jpg")
    assert one == Item("b.jpg", "image", data=b"b.jpg")


def test_a_wav_file_for_parts_is_sent_in_pieces_and_other_files_whole(tmp_path: Path) -> None:
    rate, seconds = 100, 75
    samples = np.arange(2 * rate * seconds, dtype=np.int16)
    with wave.open(str(tmp_path / "talk.wav"), "wb") as file:
        file.setparams((2, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    (tmp_path / "song.mp3").write_bytes(b"ID3")
    song, *pieces = RawItems("audio", in_parts=True).read(tmp_path)
    assert song == Item("song.mp3", "audio", data=b"ID3", parts=True)
    assert {(piece.id, piece.parts) for piece in pieces} == {("talk.wav", True)}
    assert [piece.start for piece in pieces] == [0, 30, 60]
    sent = b""
    for piece in pieces:
        with wave.open(BytesIO(piece.data or b"")) as file:
            assert (file.getframerate(), file.getnchannels()) == (rate, 2)
            sent += file.readframes(file.getnframes())
    assert sent == samples.tobytes()


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "metadata.jsonl",
            [
                '{"file_name": "a.jpg", "id": "A", "source": "https://x.org/a", "year": 1999, "tags": ["x", "y"]}',
                '{"image_file_name": "sub/b.png", "code": "0123", "good": true}',
            ],
        ),
        (
            "metadata.csv",
            [
                "file_name,image_file_name,id,source,year,code,good,empty",
                "a.jpg,,A,https://x.org/a,1999,,,",
                ",sub/b.png,,,,0123,true,",
            ],
        ),
    ],
)
def test_a_manifest_names_the_files_of_a_folder_and_their_payloads(
    tmp_path: Path, name: str, lines: list[str]
) -> None:
    (tmp_path / "sub").mkdir()
    for file in ("a.jpg", "sub/b.png", "not-named.jpg"):
        (tmp_path / file).write_bytes(file.encode())
    (tmp_path / name).write_text("\n".join(lines))
    tags = {"tags": ["x", "y"]} if name.endswith("jsonl") else {}
    assert list(RawItems("image", thumbnail=True).read(tmp_path)) == [
        Item(
            *("A", "image"),
            data=b"a.jpg",
            payload={"year": 1999, **tags},
            source="https://x.org/a",
            thumbnail=True,
        ),
        Item(
            *("sub/b.png", "image"),
            data=b"sub/b.png",
            payload={"code": "0123", "good": True},
            thumbnail=True,
        ),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"file_name": "../a.jpg"}', "outside of folder"),
        ('{"name": "a.jpg"}', "line 1: no column image_file_name or file_name"),
        ('{"file_name": "gone.jpg"}', "no such file"),
        ("[]", "a row must be a JSON object"),
    ],
)
def test_a_manifest_with_a_row_that_names_no_file_of_the_folder_is_an_error(
    tmp_path: Path, row: str, words: str
) -> None:
    (tmp_path / "metadata.jsonl").write_text(row)
    with pytest.raises((CommandError, InvalidArgument), match=words):
        list(RawItems("image").read(tmp_path))


def test_a_folder_with_a_broken_link_is_refused_before_anything_is_added(
    cmcl: Cmcl, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "b.png").symlink_to("gone.png")
    add = ("collection", "add", "things", str(tmp_path), "--modality", "image")
    assert "b.png is a link to gone.png, which does not exist (1 of 2 files)" in cmcl(*add, code=1)
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").symlink_to(Path(__file__))
    assert "outside of folder" in cmcl(*add, code=Exit.USAGE)


def test_files_that_the_encoder_cannot_read_are_left_out_and_named(
    cmcl: Cmcl, server: RestServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    added = list[str]()

    def answer(asked: Asked) -> Answer:
        ids = [item["id"] for item in asked.body["items"]]
        if damaged := [each for each in ids if "damaged" in each]:
            error = {"message": f"{damaged[0]} is no picture", "code": "unreadable_item"}
            return 400, {"error": error}
        added.extend(ids)
        return 200, body(WriteResult, rows=len(added), revision=2)

    monkeypatch.setenv("CMCL_EMBEDDINGS_URL", server.url)
    server.answer = answer
    for name in ("a.png", "b-damaged.png", "c.png", "d.png", "e-damaged.png"):
        (tmp_path / name).write_bytes(b"PNG")
    add = ("collection", "add", "things", str(tmp_path), "--modality", "image")
    assert "3 items added, 2 left out; things is at revision 2" in cmcl(*add)
    assert added == ["a.png", "c.png", "d.png"]
    for name in ("b-damaged.png", "e-damaged.png"):
        assert f"left out {name}: {name} is no picture" in cmcl.stderr
    for name in added:
        (tmp_path / name).unlink()
    assert "no file of" in cmcl(*add, code=1)


def test_options_of_raw_files_are_refused_for_other_items(cmcl: Cmcl, tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text('{"id": "a", "modality": "image", "feature": [1.0]}')
    for option in ("--parts", "--thumbnails"):
        assert "name their --modality" in cmcl(
            "collection", "add", "things", str(items), option, code=1
        )


def test_items_that_were_added_before_an_error_are_counted(
    cmcl: Cmcl, server: RestServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CMCL_EMBEDDINGS_URL", server.url)
    server.always((200, body(WriteResult, rows=1000, revision=2)))
    lines = tmp_path / "items.jsonl"
    items = [
        json.dumps({"id": f"n{n}", "modality": "image", "feature": [1.0] * 8}) for n in range(1000)
    ]
    lines.write_text("\n".join([*items, "{"]))
    added = f"1,000 items of {lines} were added to things"
    cmcl("collection", "add", "things", str(lines), code=1)
    assert added in cmcl.stderr
    assert cmcl.stderr.index(added) < cmcl.stderr.index("line 1001 is not valid JSON")
