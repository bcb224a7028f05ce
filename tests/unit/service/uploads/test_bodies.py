"""Bodies as they come over the wire: cut off, too long, without a length."""

import os
import socket
import subprocess
import tracemalloc
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.architecture.documents import code_of
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table, write_shard
from tests.fakes.served_app import served
from tests.fakes.uploads import BYTES, MIB, announce, pattern, stored_keys

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


def test_a_file_without_a_length_is_taken(plane: ControlPlane) -> None:
    data = pattern(3 * MIB)
    upload = announce(plane, len(data))
    pieces = (data[at : at + 100_000] for at in range(0, len(data), 100_000))
    with served(plane.app) as url:
        path = f"{url}/v1/uploads/{upload}/file"
        assert httpx.put(path, content=pieces, headers=BYTES).status_code == 200
    (key,) = stored_keys(plane, upload)
    assert plane.store.read(key) == data


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
