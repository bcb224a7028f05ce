"""Commands for raw data: encoders, folders, manifests, dry runs, rows left out, raw queries."""

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmcl.cli.errors import Exit
from cmcl.contract.dataset import RejectedRow
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table, write_shard
from tests.fakes.preparer import report_on, requests_in
from tests.fakes.served_app import served
from tests.unit.client.command_line import Cmcl
from tests.unit.client.rest_server import RestServer
from tests.unit.client.ticking import CLIP, RAW_MODEL, captioned, ticking

OF_BIRDS = ("--pair=image,text", "--model=birds")


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane with an encoder, and a model that is bound to it."""
    plane = ControlPlane(tmp_path / "plane", encoders=(CLIP,))
    plane.create_model("birds", **RAW_MODEL)
    yield plane
    plane.close()


@pytest.fixture
def cmcl(
    plane: ControlPlane, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cmcl]:
    """The command line with `plane`."""
    monkeypatch.setenv("COLUMNS", "160")
    with served(plane.app) as url:
        monkeypatch.setenv("CMCL_URL", url)
        yield Cmcl(capsys)


def test_a_modality_is_bound_to_an_encoder_and_takes_its_width(cmcl: Cmcl) -> None:
    create = ("model", "create", "bees")
    bound = ("--modality=image=@clip-image", "--modality=text=3")
    assert "image 4 (clip-image), text 3" in cmcl(*create, *bound)
    assert cmcl.one(*create, *bound)["modalities"]["image"] == {
        "width": 4,
        "encoder": "clip-image",
    }
    for modality, words in {
        "image=@clip": "no encoder 'clip'; permitted: clip-image",
        "image=@": "write NAME=WIDTH or NAME=@ENCODER",
        "image=wide": "write NAME=WIDTH or NAME=@ENCODER",
    }.items():
        refused = cmcl(*create, f"--modality={modality}", "--modality=text=3", code=Exit.USAGE)
        assert words in " ".join(refused.split())


def test_what_was_found_in_a_folder_is_printed_before_it_is_sent(
    cmcl: Cmcl, tmp_path: Path
) -> None:
    folder = captioned(tmp_path / "My Birds", "jay", "tit")
    out = cmcl("dataset", "add", str(folder), *OF_BIRDS, "--max-bad-share=0.2")
    assert f"{folder}: 2 pictures, 2 captions; layout captions" in cmcl.stderr
    assert "My Birds packed: 6 bytes\nMy Birds-00001.tar sent: 10.2 kB" in cmcl.stderr
    assert out.startswith("dataset ds-")
    (added,) = cmcl.lines("dataset", "list")
    assert added["name"] == "my-birds"
    assert cmcl.one("dataset", "show", added["id"])["max_bad_share"] == 0.2
    assert cmcl("dataset", "add", str(folder), *OF_BIRDS) == out, "the same dataset"


def test_a_manifest_is_written_and_nothing_sent(cmcl: Cmcl, tmp_path: Path) -> None:
    folder, target = captioned(tmp_path / "birds", "jay", "tit"), tmp_path / "birds.jsonl"
    add = ("dataset", "add", *OF_BIRDS)
    assert cmcl(*add, str(folder), f"--write-manifest={target}") == ""
    assert f"2 captions; layout captions; written to {target}" in cmcl.stderr
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert rows == [
        {"id": "jay.jpg", "image_file_name": "birds/jay.jpg", "text": "a jay"},
        {"id": "tit.jpg", "image_file_name": "birds/tit.jpg", "text": "a tit"},
    ]
    assert cmcl.lines("dataset", "list") == []
    missing = f"--write-manifest={tmp_path / 'no' / 'such'}"
    assert "cannot be written" in cmcl(*add, str(folder), missing, code=Exit.FAILED)
    shard = write_shard(tmp_path / "a.parquet", feature_table(16)).uri
    refused = cmcl(*add, shard, f"--write-manifest={target}", code=Exit.USAGE)
    assert "give one folder of raw files" in refused


def test_a_dry_run_shows_its_report_and_a_rejection_is_an_exit_code(
    cmcl: Cmcl, plane: ControlPlane
) -> None:
    add = ("dataset", "add", plane.shard("new")["uri"], *OF_BIRDS, "--dry-run")
    with ticking(plane):
        assert "16 rows to train on" in cmcl(*add)
        assert cmcl.one(*add)["report"]["advice"] == ["text: nothing is odd"]
        plane.preparer = refuse
        refused = cmcl(*add, code=Exit.FAILED)
    assert refused == "error: the dataset would be rejected: too few rows\n"
    last = cmcl.lines("job", "list")[-1]
    assert f"reported; see: cmcl dataset show {last['dataset']}" in cmcl("job", "watch", last["id"])
    assert "reported (dry run)" in cmcl("job", "show", last["id"])
    assert "16 usable rows" in cmcl("dataset", "show", last["dataset"])


def refuse(store: ObjectStore) -> None:
    """Report that each dataset would be rejected."""
    for request in requests_in(store):
        report_on(store, request, 16, refusals=("too few rows",))


def test_rows_that_were_left_out_are_listed_with_their_reasons(
    cmcl: Cmcl, plane: ControlPlane
) -> None:
    dataset = cmcl.one("dataset", "add", plane.shard("new")["uri"], *OF_BIRDS)["dataset"]["id"]
    assert f"no rows of {dataset} were left out" in cmcl("dataset", "rejected", dataset)
    row = RejectedRow(
        id="jay-7", file="s3://b/a.jsonl", row=7, place="a.jsonl line 8", reason="it is cut off"
    )
    plane.store.put(layout.rejected_rows(dataset), f"{row.model_dump_json()}\n".encode())
    assert "│ a.jsonl line 8 │ it is cut off │ jay-7 │" in cmcl("dataset", "rejected", dataset)
    assert cmcl.lines("dataset", "rejected", dataset) == [row.model_dump()]


@pytest.fixture
def endpoint(server: RestServer, monkeypatch: pytest.MonkeyPatch) -> RestServer:
    """An endpoint that answers with one vector."""
    monkeypatch.setenv("CMCL_EMBEDDINGS_URL", server.url)
    vector = base64.b64encode(struct.pack("<2f", 0.5, -1.0)).decode()
    server.always((200, {"model": "birds@1", "data": [{"embedding": vector}]}))
    return server


def test_files_and_numbers_are_embedded(
    endpoint: RestServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, picture = Cmcl(capsys), tmp_path / "jay.jpg"
    picture.write_bytes(b"JPEG")
    answer = json.loads(run("embed", "birds", "image", "--data", str(picture)))
    assert answer == {"version": 1, "embeddings": [[0.5, -1.0]]}
    run("embed", "birds", "place", "--numbers=48.85,2.35", "--numbers=-3,7")
    data = base64.b64encode(b"JPEG").decode()
    assert [asked.body["input"] for asked in endpoint.asked] == [
        [{"modality": "image", "data": data}],
        [
            {"modality": "place", "numbers": [48.85, 2.35]},
            {"modality": "place", "numbers": [-3.0, 7.0]},
        ],
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["image"], "give exactly one of"),
        (["image", "--text=a jay", "--numbers=1,2"], "give exactly one of"),
        (["place", "--numbers=1,north"], "'1,north': write numbers with commas"),
        (["image", "--data=no/such.jpg"], "no such file"),
        (["--numbers=1,2"], "the MODALITY is missing"),
    ],
)
def test_an_input_that_cannot_be_embedded_is_a_usage_error(
    endpoint: RestServer, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert words in Cmcl(capsys)("embed", "birds", *arguments, code=Exit.USAGE)
    assert endpoint.asked == []
