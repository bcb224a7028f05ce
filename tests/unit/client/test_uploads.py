"""Uploads: in parts, resumed after a crash, verified by digest."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from cmcl import Client, CmclError, Retries
from cmcl.client import Upload, UploadProgress
from cmcl.client.files import LocalFile, Part
from cmcl.client.wire import Request
from cmcl.contract.model import ModelSpec
from cmcl.storage.s3 import SMALLEST_PART
from tests.fakes.control_plane import SPEC, ControlPlane
from tests.fakes.feature_shards import feature_table, write_shard
from tests.unit.client.driven import Driven
from tests.unit.client.either import in_process
from tests.unit.client.rest_server import Asked, RestServer

PAIR = ("image", "text")
ONCE = Retries(attempts=1)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of three parts of the smallest permitted size."""
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(range(251)) * (2 * SMALLEST_PART // 251 + 100))
    return path


@pytest.fixture
def small_parts(new_folder: Path, tmp_path: Path) -> ControlPlane:
    """A service that permits only parts of the smallest size."""
    return ControlPlane(tmp_path / "small", upload_part_bytes_max=SMALLEST_PART)


class Dying:
    """An app that stops responding after a number of parts."""

    def __init__(self, app: FastAPI, parts: int) -> None:
        self._app = app
        self._left = parts
        self.parts: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if "/parts/" in scope["path"]:
            if not self._left:
                raise httpx.ConnectError("dead (on purpose)")
            self._left -= 1
            self.parts.append(scope["path"].rpartition("/")[2])
        await self._app(scope, receive, send)


def test_a_file_arrives_in_parts_and_is_the_same(
    kind: str, small_parts: ControlPlane, large: Path
) -> None:
    reported: list[UploadProgress] = []
    with in_process(kind, small_parts.app) as client:
        sent = client.upload(large, reported.append)
        assert client.upload_state(sent.id).state == "complete"
    assert sent.sha256 == hashlib.sha256(large.read_bytes()).hexdigest()
    size = large.stat().st_size
    assert [now.sent for now in reported] == [SMALLEST_PART, 2 * SMALLEST_PART, size]
    assert {(now.path, now.total) for now in reported} == {(large, size)}
    small_parts.close()


def test_after_a_crash_only_missing_parts_are_sent(
    kind: str, small_parts: ControlPlane, large: Path
) -> None:
    dying = Dying(small_parts.app, parts=2)
    with in_process(kind, dying) as client, pytest.raises(CmclError):  # type: ignore[arg-type]
        client.upload(large)
    living = Dying(small_parts.app, parts=9)
    with in_process(kind, living) as client:  # type: ignore[arg-type]
        sent = client.upload(large)
    assert (dying.parts, living.parts) == (["1", "2"], ["3"])
    assert sent.sha256 == hashlib.sha256(large.read_bytes()).hexdigest()
    small_parts.close()


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


def test_a_deleted_upload_is_started_again(service: Client, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    first = service.upload(path)
    service.abort_upload(first.id)
    again = service.upload(path)
    assert again.id != first.id
    assert service.upload(path).id == again.id


@pytest.mark.parametrize("content", [b"", None])
def test_a_file_that_cannot_be_sent_is_named(
    client: Client, server: RestServer, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "a.bin"
    if content is not None:
        path.write_bytes(content)
    for send in (client.upload, client.upload_direct):
        with pytest.raises(CmclError, match=r"a\.bin cannot be"):
            send(path)
    with pytest.raises(CmclError, match="not a file"):
        client.upload(tmp_path)
    assert server.asked == []


def prepared(part_sha256: str, **complete: object) -> Callable[[Asked], tuple[int, object]]:
    """A service with these responses to a part and to the completion."""
    upload = {"id": "up-1", "filename": "a", "bytes": 3, "state": "open"}

    def answer(asked: Asked) -> tuple[int, object]:
        if asked.method == "PUT":
            return 200, {"number": 1, "bytes": 3, "sha256": part_sha256}
        if asked.path.endswith("/complete"):
            return 200, {**upload, "state": "complete", "uri": "upload:up-1", **complete}
        return 200, upload

    return answer


def test_damage_in_transit_is_detected(client: Client, server: RestServer, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    server.answer = prepared("0" * 64)
    with pytest.raises(CmclError, match="arrived damaged"):
        client.upload(path)
    right = hashlib.sha256(b"one").hexdigest()
    server.answer = prepared(right, sha256="0" * 64)
    with pytest.raises(CmclError, match="changed during the upload, or arrived damaged"):
        client.upload(path)
    server.answer = prepared(right, sha256=right)
    assert client.upload(path).uri == "upload:up-1"
    part = next(asked for asked in server.asked if asked.method == "PUT")
    assert (part.body, part.headers["content-type"]) == (b"one", "application/octet-stream")
    assert part.headers["content-digest"].startswith("sha-256=:")


def test_a_file_that_changes_during_its_upload_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    file = LocalFile.of(path)
    path.write_bytes(b"longer")
    with pytest.raises(CmclError, match="changed during the upload"):
        file.read(Part(1, 0, 3))


@pytest.mark.parametrize("lost", [httpx.Response(409, json={}), httpx.ReadTimeout("too long")])
def test_a_concurrent_completion_is_awaited(lost: httpx.Response | Exception) -> None:
    """Another client, or an earlier request whose response was lost."""
    states = [
        httpx.Response(200, json={"id": "up-1", "filename": "a", "bytes": 3, "state": state})
        for state in ("completing", "completing", "complete")
    ]
    begun = Upload(id="up-1", filename="a", bytes=3, state="open")
    driven = Driven(lambda client: client._complete(begun), [lost, *states], ONCE)
    assert driven.result.state == "complete"
    assert driven.paused == [1.0, 1.0]


def test_a_rejected_completion_fails_at_once() -> None:
    refused = httpx.Response(409, json={"detail": "part 2 is missing"})
    still = httpx.Response(200, json={"id": "up-1", "filename": "a", "bytes": 3, "state": "open"})
    begun = Upload(id="up-1", filename="a", bytes=3, state="open")
    with pytest.raises(CmclError, match="part 2 is missing"):
        Driven(lambda client: client._complete(begun), [refused, still], ONCE)


def busy(seconds: int) -> httpx.Response:
    return httpx.Response(429, json={}, headers={"retry-after": str(seconds)})


PART = Request("PUT", "/v1/uploads/up-1/parts/1", content=b"one")


def send_part(outcomes: Sequence[httpx.Response | Exception], retries: Retries) -> Driven:
    return Driven(lambda client: client._send_in_turn(PART), outcomes, retries)


def test_a_part_is_retried_while_the_service_is_busy() -> None:
    retries = Retries(attempts=4, first_pause=0.0)
    driven = send_part([busy(2)] * 30 + [httpx.Response(200)], retries)
    assert driven.result.status_code == 200
    assert driven.paused == [2.0] * 30


def test_a_part_is_retried_for_half_an_hour_at_most() -> None:
    with pytest.raises(CmclError) as caught:
        send_part([busy(600)] * 4, ONCE)
    assert (caught.value.status, caught.value.retry_after) == (429, 600.0)


def test_a_rejected_part_is_not_retried() -> None:
    with pytest.raises(CmclError, match="it was damaged"):
        send_part([httpx.Response(422, json={"detail": "it was damaged"})], ONCE)


@pytest.mark.parametrize("state", ["completing", "complete"])
def test_nothing_is_sent_for_a_closed_upload(
    client: Client, server: RestServer, tmp_path: Path, state: str
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    server.always((200, {"id": "up-1", "filename": "a", "bytes": 3, "state": state}))
    assert client.upload(path).id == "up-1"
    assert [asked.method for asked in server.asked if asked.method == "PUT"] == []


def test_a_signed_address_gets_the_file_and_no_key(
    client: Client, server: RestServer, tmp_path: Path
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    digest = hashlib.sha256(b"one").hexdigest()
    upload = {"id": "up-1", "filename": "a.bin", "bytes": 3, "state": "open", "sha256": digest}
    signed = {"method": "PUT", "url": f"{server.url}/bucket/a?signature=s", "headers": {"x-a": "1"}}
    at = "2026-11-24T00:00:00Z"

    def answer(asked: Asked) -> tuple[int, object]:
        if asked.path.endswith("/complete"):
            return 200, {**upload, "state": "complete", "uri": "upload:up-1"}
        return 200, {**upload, "presigned": {**signed, "expires_at": at}}

    server.answer = answer
    assert client.upload_direct(path).uri == "upload:up-1"
    begun, put, _ = server.asked
    assert (begun.body["direct"], begun.body["sha256"]) == (True, digest)
    assert (put.method, put.path, put.body) == ("PUT", "/bucket/a?signature=s", b"one")
    assert put.headers["content-length"] == "3"
    assert "transfer-encoding" not in put.headers
    assert put.headers["x-a"] == "1"


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


def test_a_rejected_address_does_not_cause_uploads(
    service: Client, plane: ControlPlane, tmp_path: Path
) -> None:
    service.create_model("scenes", ModelSpec.model_validate(SPEC))
    shard = tmp_path / "a.parquet"
    write_shard(shard, feature_table(16))
    with pytest.raises(CmclError) as caught:
        service.add_dataset("scenes", "a", PAIR, ["s3://elsewhere/b.parquet", shard])
    assert caught.value.status == 422


def test_local_files_are_uploaded_at_once_to_a_remote_service(kind: str, tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path / "far", allowed_hosts=("service.example",))
    path = Path(plane.shard("near")["uri"].removeprefix("file://"))
    plane.create_model()
    with in_process(kind, plane.app, host="service.example") as client:
        accepted = client.add_dataset("scenes", "near", PAIR, [path])
        assert client.dataset(accepted.dataset.id).shards[0].uri.startswith("upload:")
    plane.close()
