"""Uploads: sent again after an interruption, verified by digest."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from cmcl import Client, CmclError, Retries
from cmcl.client import Upload, UploadProgress
from cmcl.client.files import LocalFile, check_unchanged
from cmcl.contract.model import ModelSpec
from tests.fakes.control_plane import SPEC, ControlPlane
from tests.fakes.feature_shards import feature_table, write_shard
from tests.fakes.responses import body
from tests.unit.client.driven import Driven
from tests.unit.client.either import in_process
from tests.unit.client.rest_server import Asked, RestServer

PAIR = ("image", "text")
ONCE = Retries(attempts=1)


class Dying:
    """An app that breaks off bodies of files, so many times, before or after it has received them."""

    def __init__(self, app: FastAPI, times: int, *, has_received: bool) -> None:
        self._app = app
        self._left = times
        self._has_received = has_received
        self.files = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not scope["path"].endswith("/file"):
            await self._app(scope, receive, send)
            return
        self.files += 1
        self._left -= 1
        if self._left < 0 or self._has_received:
            await self._app(scope, receive, send if self._left < 0 else _lost)
        if self._left >= 0:
            raise httpx.ReadError("dead (on purpose)")


async def _lost(message: object) -> None:
    """A response that is lost."""


def test_a_file_arrives_and_is_the_same(kind: str, plane: ControlPlane, tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(range(251)) * 10_000)
    reported: list[UploadProgress] = []
    with in_process(kind, plane.app) as client:
        sent = client.upload(path, reported.append)
        assert client.upload_state(sent.id).state == "complete"
    assert sent.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    amounts = [now.sent for now in reported]
    assert (amounts, len(amounts) > 2) == (sorted(amounts), True)
    assert {(now.path, now.total) for now in reported} == {(path, 2_510_000)}
    assert amounts[-1] == 2_510_000


@pytest.mark.parametrize("has_received", [True, False])
def test_a_file_is_sent_again_after_an_interruption(
    kind: str, plane: ControlPlane, tmp_path: Path, *, has_received: bool
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    dying = Dying(plane.app, 1, has_received=has_received)
    retries = Retries(attempts=2, first_pause=0.0)
    with in_process(kind, dying, retries=retries) as client:  # type: ignore[arg-type]
        sent = client.upload(path)
    assert dying.files == 2
    assert (sent.state, sent.sha256) == ("complete", hashlib.sha256(b"one").hexdigest())


def test_the_same_file_again_is_the_same_upload_until_it_changes(
    service: Client, tmp_path: Path
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    first = service.upload(path)
    assert service.upload(path).id == first.id
    os.utime(path, ns=(0, 0))
    assert service.upload(path).id == first.id
    path.write_bytes(b"two")
    # Same size and modification time.
    os.utime(path, ns=(0, 0))
    second = service.upload(path)
    assert second.id != first.id
    assert second.sha256 == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize("content", [b"", None])
def test_a_file_that_cannot_be_sent_is_named(
    client: Client, server: RestServer, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "a.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CmclError, match=r"a\.bin cannot be"):
        client.upload(path)
    with pytest.raises(CmclError, match="not a file"):
        client.upload(tmp_path)
    assert server.asked == []


UPLOAD = body(Upload, id="up-1", bytes=3)
COMPLETE = {**UPLOAD, "state": "complete", "uri": "upload:up-1"}


def test_damage_in_transit_is_detected(client: Client, server: RestServer, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    found = "0" * 64

    def answer(asked: Asked) -> tuple[int, object]:
        return 200, {**COMPLETE, "sha256": found} if asked.method == "PUT" else UPLOAD

    server.answer = answer
    with pytest.raises(CmclError, match="changed during the upload, or arrived damaged"):
        client.upload(path)
    found = hashlib.sha256(b"one").hexdigest()
    assert client.upload(path).uri == "upload:up-1"
    sent = next(asked for asked in server.asked if asked.method == "PUT")
    announced = next(asked for asked in server.asked if asked.path == "/v1/uploads")
    assert announced.body == {"filename": "a.bin", "bytes": 3, "sha256": found}
    assert (sent.body, sent.headers["content-type"]) == (b"one", "application/octet-stream")
    assert sent.headers["content-length"] == "3"
    assert "transfer-encoding" not in sent.headers


def test_a_file_that_changes_during_its_upload_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    file = LocalFile.of(path)
    path.write_bytes(b"longer")
    with pytest.raises(CmclError, match="changed during the upload"):
        check_unchanged(file)


def send(outcomes: Sequence[httpx.Response | Exception], tmp_path: Path) -> Driven:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    file, begun = LocalFile.of(path), Upload.model_validate(UPLOAD)
    return Driven(lambda client: client._send(begun, file, lambda _: None), outcomes, ONCE)


def busy(seconds: int) -> httpx.Response:
    return httpx.Response(429, json={}, headers={"retry-after": str(seconds)})


def test_a_file_is_retried_while_the_service_is_busy(tmp_path: Path) -> None:
    driven = send([busy(2)] * 30 + [httpx.Response(200, json=COMPLETE)], tmp_path)
    assert driven.result.state == "complete"
    assert driven.paused == [2.0] * 30


def test_a_file_is_retried_for_half_an_hour_at_most(tmp_path: Path) -> None:
    with pytest.raises(CmclError) as caught:
        send([busy(600)] * 4, tmp_path)
    assert (caught.value.status, caught.value.retry_after) == (429, 600.0)


def test_local_shards_that_the_service_may_not_read_are_sent(
    service: Client, plane: ControlPlane, tmp_path: Path
) -> None:
    service.create_model("scenes", ModelSpec.model_validate(SPEC))
    folder = tmp_path / "mine"
    for name in ("b", "a"):
        write_shard(folder / f"{name}.parquet", feature_table(16, prefix=name))
    (folder / "README.md").write_text("not a shard")
    readable = plane.shard("theirs")["uri"]
    accepted = service.add_dataset("scenes", "mixed", PAIR, [readable, folder])
    uris = [shard.uri for shard in service.dataset(accepted.dataset.id).shards]
    assert uris[0] == readable
    assert [uri.startswith("upload:up-") for uri in uris] == [False, True, True]
    again = service.add_dataset("scenes", "mixed", PAIR, [readable, folder])
    assert again.job.id == accepted.job.id
    assert plane.run_to_end(accepted.job.id).state == "published"


def test_local_shards_that_the_service_may_read_are_not_uploaded(
    service: Client, plane: ControlPlane
) -> None:
    service.create_model("scenes", ModelSpec.model_validate(SPEC))
    uri = plane.shard("near")["uri"]
    path = Path(uri.removeprefix("file://"))
    accepted = service.add_dataset("scenes", "near", PAIR, [path])
    assert service.dataset(accepted.dataset.id).shards[0].uri == uri
    sent = service.add_dataset("scenes", "sent", PAIR, [path], upload="always")
    assert service.dataset(sent.dataset.id).shards[0].uri.startswith("upload:")


def test_nothing_is_uploaded_with_mode_never(
    service: Client, plane: ControlPlane, tmp_path: Path
) -> None:
    service.create_model("scenes", ModelSpec.model_validate(SPEC))
    shard = tmp_path / "a.parquet"
    write_shard(shard, feature_table(16))
    with pytest.raises(CmclError, match="outside the allowed prefixes"):
        service.add_dataset("scenes", "a", PAIR, [shard], upload="never")


def test_local_files_are_uploaded_at_once_to_a_remote_service(kind: str, tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path / "far", allowed_hosts=("service.example",))
    path = Path(plane.shard("near")["uri"].removeprefix("file://"))
    plane.create_model()
    with in_process(kind, plane.app, host="service.example") as client:
        accepted = client.add_dataset("scenes", "near", PAIR, [path])
        assert client.dataset(accepted.dataset.id).shards[0].uri.startswith("upload:")
    plane.close()
