"""Uploads: announced, sent, named by datasets, given up."""

import asyncio
import hashlib
import io
import os
import socket
import subprocess
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pyarrow.parquet as pq
import pytest
from fastapi import Request

from cmcl.contract.api.jobs import JobState
from service.api import limits
from service.api.limits import pieces_of
from service.core.errors import IncompleteBody
from service.core.principal import LOCAL
from service.database.queries import datasets
from service.datasets.uploads import resolve
from tests.architecture.documents import code_of
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table, write_shard
from tests.fakes.served_app import served
from tests.fakes.uploads import BYTES, MIB, announce, pattern, send, stored_keys, upload_whole
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient


def parquet(prefix: str = "up") -> bytes:
    buffer = io.BytesIO()
    pq.write_table(feature_table(16, prefix=prefix), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("is_promised", [True, False])
def test_a_file_arrives_as_it_was(plane: ControlPlane, *, is_promised: bool) -> None:
    data = pattern(3 * MIB + 7)
    sha256 = hashlib.sha256(data).hexdigest()
    upload = announce(plane, len(data), **({"sha256": sha256} if is_promised else {}))
    seen = plane.client.get(f"/v1/uploads/{upload}").json()
    assert (seen["state"], seen["uri"]) == ("open", None)
    done = send(plane, upload, data)
    assert (done["state"], done["uri"], done["sha256"]) == ("complete", f"upload:{upload}", sha256)
    assert plane.client.get(f"/v1/uploads/{upload}").json() == done
    (key,) = stored_keys(plane, upload)
    assert plane.store.read(key) == data


def test_a_file_that_has_arrived_is_not_replaced(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    send(plane, upload, b"abc")
    response = plane.client.put(f"/v1/uploads/{upload}/file", content=b"xyz", headers=BYTES)
    assert response.status_code == 409
    (key,) = stored_keys(plane, upload)
    assert plane.store.read(key) == b"abc"


@pytest.mark.parametrize("later", [b"abc", b"xyz"])
def test_of_two_requests_the_first_that_ends_has_sent_the_file(
    plane: ControlPlane, later: bytes
) -> None:
    """A request whose client gave up may still be under way."""
    upload = announce(plane, 3)
    path = f"/v1/uploads/{upload}/file"

    async def body() -> AsyncIterator[bytes]:
        yield later[:1]
        await asyncio.to_thread(send, plane, upload, b"abc")
        yield later[1:]

    response = plane.client.put(path, content=body(), headers=BYTES)
    assert response.status_code == (200 if later == b"abc" else 409)
    uri = f"upload:{upload}"
    assert (
        plane.store.read(resolve(plane.context, uri).uri.removeprefix(f"{plane.store.uri}/"))
        == b"abc"
    )


@pytest.mark.parametrize(
    ("data", "field"), [(b"ab", "bytes"), (b"abcd", "bytes"), (b"xyz", "sha256"), (b"", "bytes")]
)
def test_another_file_than_announced_leaves_nothing(
    plane: ControlPlane, data: bytes, field: str
) -> None:
    upload = announce(plane, 3, sha256=hashlib.sha256(b"abc").hexdigest())
    response = plane.client.put(f"/v1/uploads/{upload}/file", content=data, headers=BYTES)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (409, field)
    assert stored_keys(plane, upload) == []
    assert send(plane, upload, b"abc")["state"] == "complete"


def test_an_outage_of_the_store_leaves_the_upload_open(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    plane.store.broken = "uploads/"
    response = plane.client.put(f"/v1/uploads/{upload}/file", content=b"abc", headers=BYTES)
    assert response.status_code == 503
    plane.store.broken = None
    assert send(plane, upload, b"abc")["state"] == "complete"


def test_a_dataset_learns_from_an_upload(plane: ControlPlane) -> None:
    uri = upload_whole(plane, parquet())
    held_out = upload_whole(plane, parquet("held-out"))
    job = plane.post_dataset(shards=[{"uri": uri}], evaluation_shards=[{"uri": held_out}])
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    dataset = plane.client.get(f"/v1/datasets/{plane.job(job).dataset}").json()
    assert dataset["shards"] == [{"uri": uri, "sha256": None, "name": "pairs.parquet"}]
    assert dataset["manifest"]["shards"][0]["uri"].startswith(f"{plane.store.uri}/uploads/")


def test_an_upload_that_was_damaged_in_the_store_is_not_learned(plane: ControlPlane) -> None:
    uri = upload_whole(plane, parquet())
    (key,) = stored_keys(plane, uri.removeprefix("upload:"))
    plane.store.put(key, parquet("other"))
    failed = plane.tick_to(plane.post_dataset(shards=[{"uri": uri}]), JobState.FAILED)
    assert failed.message is not None
    assert "its SHA-256 is" in failed.message


def test_bad_rows_are_named_as_the_user_named_them(plane: ControlPlane) -> None:
    uri = upload_whole(plane, b"no rows at all")
    job = plane.post_dataset(shards=[{"uri": uri}])
    failed = plane.tick_to(job, JobState.FAILED)
    assert failed.message is not None
    assert failed.message.startswith("pairs.parquet: ")
    assert "file://" not in failed.message


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"filename": "a/b"}, "filename"),
        ({"filename": "a\\b"}, "filename"),
        ({"filename": ".."}, "filename"),
        ({"filename": " a"}, "filename"),
        ({"filename": ""}, "filename"),
        ({"filename": "a\nb"}, "filename"),
        ({"filename": "a\x00b"}, "filename"),
        ({"filename": "a\u202egnp.exe"}, "filename"),
        ({"filename": "x" * 129}, "filename"),
        ({"bytes": 0}, "bytes"),
        ({"bytes": 2**40}, "bytes"),
        ({"sha256": "abc"}, "sha256"),
        ({"colour": 3}, "colour"),
    ],
)
def test_a_bad_announcement_names_its_field(
    plane: ControlPlane, changes: dict[str, object], field: str
) -> None:
    body = {"filename": "pairs.parquet", "bytes": 3, **changes}
    response = plane.client.post("/v1/uploads", json=body)
    assert response.status_code == 422
    assert [problem["field"] for problem in response.json()["errors"]] == [field]


def test_bytes_must_be_declared_as_bytes(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    path = f"/v1/uploads/{upload}/file"
    for headers in ({}, {"Content-Type": "application/json"}):
        response = plane.client.put(path, content=b"abc", headers=headers)
        assert response.status_code == 415
        assert "application/octet-stream" in response.json()["detail"]


def test_a_dataset_may_name_only_complete_uploads(plane: ControlPlane) -> None:
    uris = [f"upload:{announce(plane, 3)}", "upload:up-0123456789ab", "upload:../x", "upload:\0"]
    body = plane.dataset_body("one", shards=[{"uri": uri} for uri in uris])
    response = plane.client.post("/v1/datasets", json=body)
    assert response.status_code == 422
    fields = [problem["field"] for problem in response.json()["errors"]]
    assert fields == [f"shards[{index}].uri" for index in range(4)]
    assert "complete it first" in response.json()["errors"][0]["message"]


def test_an_upload_can_be_given_up(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    send(plane, upload, b"abc")
    assert plane.client.request("DELETE", f"/v1/uploads/{upload}").status_code == 204
    for method in ("GET", "DELETE"):
        assert plane.client.request(method, f"/v1/uploads/{upload}").status_code == 404


def test_one_that_a_dataset_needs_is_not_given_up(plane: ControlPlane) -> None:
    uri = upload_whole(plane, parquet())
    path = f"/v1/uploads/{uri.removeprefix('upload:')}"
    job = plane.post_dataset(shards=[{"uri": uri}])
    assert plane.client.request("DELETE", path).status_code == 409
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    assert plane.client.request("DELETE", path).status_code == 204


def test_an_upload_that_is_not_finished_expires(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    plane.clock.advance(24 * 3600)
    response = plane.client.put(f"/v1/uploads/{upload}/file", content=b"abc", headers=BYTES)
    assert response.status_code == 404
    assert "24 hours" in response.json()["detail"]


DOCUMENT = Path(__file__).parents[4] / "docs" / "uploads.md"


@pytest.mark.parametrize("framing", ["Content-Length: 9\r\n", "Transfer-Encoding: chunked\r\n"])
def test_a_file_that_was_cut_off_leaves_nothing(
    plane: ControlPlane, tmp_path: Path, framing: str
) -> None:
    upload = announce(plane, 9)
    start = "6\r\nabcdef\r\n" if "chunked" in framing else "abcdef"
    with served(plane.app) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            head = f"PUT /v1/uploads/{upload}/file HTTP/1.1\r\nHost: x\r\n{framing}"
            head += "Content-Type: application/octet-stream\r\n\r\n"
            connection.sendall((head + start).encode())
            connection.shutdown(socket.SHUT_WR)
            # The server has seen the end once it closes its side.
            while connection.recv(4096):
                pass
    assert stored_keys(plane, upload) == []
    assert plane.client.get(f"/v1/uploads/{upload}").json()["state"] == "open"
    assert list(tmp_path.rglob(".tmp-*")) == []


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_file_that_is_too_long_is_refused(tmp_path: Path, is_declared: bool) -> None:
    plane = ControlPlane(tmp_path, upload_bytes_max=MIB)
    upload = announce(plane, MIB)
    data = pattern(MIB + 1)
    content = data if is_declared else (data[at : at + 70_000] for at in range(0, MIB + 1, 70_000))
    with served(plane.app) as url:
        path = f"{url}/v1/uploads/{upload}/file"
        response = httpx.put(path, content=content, headers=BYTES)
    assert response.status_code == 413
    assert str(MIB) in response.json()["detail"]
    assert stored_keys(plane, upload) == []
    plane.close()


def test_a_length_that_is_not_true_is_refused(plane: ControlPlane) -> None:
    upload = announce(plane, 9)
    response = plane.client.put(
        f"/v1/uploads/{upload}/file", content=b"abc", headers=BYTES | {"Content-Length": "4"}
    )
    assert response.status_code == 400
    assert response.json()["type"] == "urn:cmcl:problem:incomplete-body"


def test_a_file_is_never_whole_in_memory(plane: ControlPlane) -> None:
    size = 24 * MIB
    upload = announce(plane, size)
    block = b"x" * 65_536

    async def pieces() -> object:
        for _ in range(size // len(block)):
            yield block

    plane.client.get("/healthz")
    tracemalloc.start()
    path = f"/v1/uploads/{upload}/file"
    response = plane.client.put(path, content=pieces(), headers=BYTES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert response.status_code == 200
    assert peak < 8 * MIB


def test_the_commands_in_the_document_work(plane: ControlPlane, tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    write_shard(file, feature_table(16))
    script = "\n".join(["set -euo pipefail", *code_of(DOCUMENT.read_text(), "sh")])
    with served(plane.app) as url:
        environment = {"PATH": os.environ["PATH"], "CMCL": url, "FILE": str(file)}
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "queued"


async def _while_one_is_on_its_way(
    client: httpx.AsyncClient, paths: tuple[str, str]
) -> tuple[httpx.Response, ...]:
    """A file that ends once another one was answered; that one; and that one again."""
    began, go_on = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"ab"
        began.set()
        await go_on.wait()
        yield b"c"

    first = asyncio.create_task(client.put(paths[0], content=body(), headers=BYTES))
    async with asyncio.timeout(60):
        await began.wait()
    refused = await client.put(paths[1], content=b"abc", headers=BYTES)
    go_on.set()
    arrived = await first
    again = await client.put(paths[1], content=b"abc", headers=BYTES)
    return arrived, refused, again


def test_a_file_above_the_limit_gets_retry_after(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, uploads_at_once=1)
    first, second = (f"/v1/uploads/{announce(plane, 3)}/file" for _ in range(2))

    async def ask() -> tuple[httpx.Response, ...]:
        transport = httpx.ASGITransport(plane.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await _while_one_is_on_its_way(client, (first, second))

    arrived, refused, again = asyncio.run(ask())
    assert [each.status_code for each in (arrived, refused, again)] == [200, 429, 200]
    assert int(refused.headers["retry-after"]) >= 1
    plane.close()


def test_places_are_left_for_other_owners_and_given_back(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, uploads_at_once=10)
    upload = announce(plane, 3)
    files, path = plane.app.state.budgets.files, f"/v1/uploads/{upload}/file"
    with files.held(LOCAL.owns_as, 8):
        refused = plane.client.put(path, content=b"abc", headers=BYTES)
        assert (refused.status_code, refused.json()["title"]) == (429, "Too many requests")
        assert "your share" in refused.json()["detail"]
        with files.held("another", 1):
            pass
    for content in (b"ab", b"abc"):
        # Also after one that is refused.
        plane.client.put(path, content=content, headers=BYTES)
        assert files.total == 0
    plane.close()


def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte just before each timeout of the proxy would hold a place without end."""
    monkeypatch.setattr(limits, "GRACE_SECONDS", 0.1)

    async def receive() -> dict[str, object]:
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def take() -> None:
        request = Request({"type": "http", "method": "PUT", "headers": []}, receive)
        async for _ in pieces_of(request):
            pass

    with pytest.raises(IncompleteBody, match=r"0\.1 s more than 65536 bytes/s take"):
        asyncio.run(take())


def test_uploads_of_one_owner_have_so_many_bytes_together(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY, upload_bytes_per_owner_max=10)
    operator = KeyClient(plane, ADMIN_KEY)
    red, blue = (operator.client_with_key(owner, owner=owner) for owner in ("red", "blue"))
    body = {"filename": "x", "bytes": 6}
    first = red.post("/v1/uploads", json=body).json()["id"]
    refused = red.post("/v1/uploads", json=body)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (409, "bytes")
    assert "permitted are 10" in refused.json()["detail"]
    assert blue.post("/v1/uploads", json=body).status_code == 201
    assert red.request("DELETE", f"/v1/uploads/{first}").status_code == 204
    assert red.post("/v1/uploads", json=body).status_code == 201
    plane.close()


def _post(plane: ControlPlane, *uris: str, **more: Any) -> tuple[int, str]:
    """Status and job."""
    body = plane.dataset_body("one", shards=[{"uri": uri} for uri in uris], **more)
    response = plane.client.post("/v1/datasets", json=body)
    return response.status_code, response.json()["job"]["id"]


def test_a_file_that_was_sent_twice_is_learned_once(plane: ControlPlane) -> None:
    first, again, other = (upload_whole(plane, parquet(name)) for name in ("a", "a", "b"))
    status, job = _post(plane, first)
    assert status == 202
    assert _post(plane, again) == (200, job)
    plane.run_to_end(job)
    assert _post(plane, again) == (200, job)
    assert _post(plane, again, other)[0] == 202


def test_a_file_is_not_trained_on_and_held_out(plane: ControlPlane) -> None:
    first, again = (upload_whole(plane, parquet()) for _ in range(2))
    body = plane.dataset_body("one", shards=[{"uri": first}], evaluation_shards=[{"uri": again}])
    response = plane.client.post("/v1/datasets", json=body)
    assert response.status_code == 422
    (problem,) = response.json()["errors"]
    assert problem["field"] == "evaluation_shards[0].uri"
    assert first in problem["message"]


def _open(plane: ControlPlane, *uris: str) -> str:
    """An open dataset with these shards, as any release may have left it."""
    body = plane.dataset_body("one", shards=[{"uri": uri} for uri in uris[:1]], sealed=False)
    dataset: str = plane.client.post("/v1/datasets", json=body).json()["dataset"]["id"]
    request = {**body, "shards": [{"uri": uri} for uri in uris]}
    with plane.context.database.write() as connection:
        datasets.set_request(connection, dataset, request)
    return f"/v1/datasets/{dataset}"


def test_only_what_is_added_is_judged(plane: ControlPlane) -> None:
    """An open dataset may have equal files from a time when addresses alone were compared."""
    first, again, third, other = (upload_whole(plane, parquet(name)) for name in "aaab")
    path = _open(plane, first, again)
    refused = plane.client.post(f"{path}/shards", json={"shards": [{"uri": other}, {"uri": third}]})
    assert refused.status_code == 422
    (problem,) = refused.json()["errors"]
    assert (problem["field"], problem["value"]) == ("shards[1].uri", third)
    added = plane.client.post(f"{path}/shards", json={"shards": [{"uri": other}]})
    assert added.status_code == 200
    assert plane.client.post(f"{path}/seal").status_code == 202


def test_a_file_whose_job_was_cancelled_can_be_sent_and_learned(plane: ControlPlane) -> None:
    first, again = (upload_whole(plane, parquet()) for _ in range(2))
    _, given_up = _post(plane, first)
    plane.client.post(f"/v1/jobs/{given_up}/cancel")
    status, job = _post(plane, again)
    assert (status, job != given_up) == (202, True)
    assert plane.run_to_end(job).state == JobState.PUBLISHED


def test_a_failed_job_is_not_retried_beside_its_twin(plane: ControlPlane) -> None:
    bad = upload_whole(plane, b"no Parquet")
    _, failed = _post(plane, bad)
    plane.tick_to(failed, JobState.FAILED)
    again = upload_whole(plane, b"no Parquet")
    assert _post(plane, again)[0] == 202
    response = plane.client.post(f"/v1/jobs/{failed}/retry")
    assert response.status_code == 409
    assert "since been posted again" in response.json()["detail"]
