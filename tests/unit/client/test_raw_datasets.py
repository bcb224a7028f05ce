"""Raw data and preparation against the real control plane: encoders, folders, dry runs, rows left out."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cmcl import Client, CmclError
from cmcl.client import UploadProgress
from tests.fakes.control_plane import ControlPlane
from tests.fakes.preparer import identity
from tests.fakes.served_app import served
from tests.unit.client.either import connected
from tests.unit.client.ticking import CLIP, RAW_MODEL, captioned, ticking

PAIR = ("image", "text")


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane with an encoder, and a model that is bound to it."""
    plane = ControlPlane(tmp_path / "plane", encoders=(CLIP,))
    yield plane
    plane.close()


@pytest.fixture
def client(kind: str, plane: ControlPlane) -> Iterator[Client]:
    with served(plane.app) as url, connected(kind, url) as client:
        client.create_model("birds", RAW_MODEL)
        yield client


def test_a_folder_posted_twice_is_the_same_dataset(client: Client, tmp_path: Path) -> None:
    folder = captioned(tmp_path / "summer", "jay", "tit")
    sent: list[UploadProgress] = []
    first = client.add_dataset("birds", "one", PAIR, [folder], on_upload=sent.append)
    assert [(now.path.name, now.phase) for now in sent] == [
        ("summer", "packing"),
        ("summer-00001.tar", "sending"),
    ]
    assert all(now.sent == now.total for now in sent)
    (shard,) = client.dataset(first.dataset.id).shards
    assert shard.uri.startswith("upload:up-")
    again = client.add_dataset("birds", "one", PAIR, [folder])
    moved = client.add_dataset("birds", "other", PAIR, [folder.rename(tmp_path / "winter")])
    assert again.job.id == moved.job.id == first.job.id
    captioned(tmp_path / "winter", "wren")
    grown = client.add_dataset("birds", "one", PAIR, [tmp_path / "winter"])
    assert grown.job.id != first.job.id


def test_a_folder_is_read_by_what_the_models_encoders_take(client: Client, tmp_path: Path) -> None:
    folder = captioned(tmp_path / "summer", "jay")
    (folder / "jay.ogg").write_bytes(b"a song")
    client.create_model("others", {"modalities": {"bird": {"encoder": "clip-image"}, "text": 3}})
    found = client.raw_folder(folder, "others", ("bird", "text"))
    assert found is not None
    assert [row.id for row in found.rows] == ["jay.jpg"]
    accepted = client.add_dataset("others", "one", ("bird", "text"), [found])
    assert len(client.dataset(accepted.dataset.id).shards) == 1
    assert client.raw_folder("s3://bucket/rows.jsonl", "others", ("bird", "text")) is None


def test_raw_folders_are_appended_to_an_open_dataset(client: Client, tmp_path: Path) -> None:
    opened = client.open_dataset("birds", "many", PAIR, [captioned(tmp_path / "a", "jay")])
    grown = client.append_shards(opened.id, [captioned(tmp_path / "b", "tit")])
    assert [shard.uri[:10] for shard in grown.shards] == ["upload:up-"] * 2


def test_a_dry_run_returns_its_report_and_keeps_nothing(
    client: Client, plane: ControlPlane
) -> None:
    shards = [plane.shard("new")["uri"]]
    states: list[str] = []
    with ticking(plane):
        tried = client.dry_run(
            *("birds", "tried", PAIR, shards),
            evaluation_share=0.25,
            on_change=lambda now: states.append(now.state),
            timeout=60,
        )
    assert tried.report is not None
    assert (tried.report.version, tried.report.rows, tried.dry_run) == (0, 12, True)
    assert states[-1] == "reported"
    assert list(client.versions("birds")) == []
    job = client.job(str(tried.job))
    assert (job.dry_run, job.has_ended, job.report) == (True, True, tried.report)


def test_a_declared_encoder_is_the_one_of_the_dataset(client: Client, plane: ControlPlane) -> None:
    clip = identity()
    shard = plane.shard("new")["uri"]
    accepted = client.add_dataset(
        "birds", "one", PAIR, [shard], encoders={"image": clip}, max_bad_share=0.5
    )
    plane.run_to_end(accepted.job.id)
    dataset, job = client.dataset(accepted.dataset.id), client.job(accepted.job.id)
    assert dataset.encoders == job.encoders == {"image": clip, "text": "undeclared"}
    assert dataset.max_bad_share == 0.5
    more, siglip = plane.shard("more")["uri"], identity("siglip")
    with pytest.raises(CmclError, match="expected 'clip'") as caught:
        client.add_dataset("birds", "two", PAIR, [more], encoders={"image": siglip})
    assert caught.value.status == 409
