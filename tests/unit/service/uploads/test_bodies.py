"""Bodies as they come over the wire: cut off, too long, without a length, onto a full disk."""

import asyncio
import os
import socket
import subprocess
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from service.api.spool import Spool
from service.core.errors import DiskFull
from tests.architecture.documents import code_of
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table, write_shard
from tests.fakes.served_app import served
from tests.fakes.uploads import BYTES, MIB, announce, complete, pattern, stored_keys

DOCUMENT = Path(__file__).parents[4] / "docs" / "uploads.md"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes spool uploads in the folder of the machine."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def spooled_files() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("cmcl-upload-*"))


@pytest.mark.parametrize("framing", ["Content-Length: 9\r\n", "Transfer-Encoding: chunked\r\n"])
def test_a_part_that_was_cut_off_leaves_nothing(plane: ControlPlane, framing: str) -> None:
    upload = announce(plane, 9)
    before = spooled_files()
    start = "6\r\nabcdef\r\n" if "chunked" in framing else "abcdef"
    with served(plane.app) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            head = f"PUT /v1/uploads/{upload}/parts/1 HTTP/1.1\r\nHost: x\r\n{framing}"
            head += "Content-Type: application/octet-stream\r\n\r\n"
            connection.sendall((head + start).encode())
            connection.shutdown(socket.SHUT_WR)
            # The server has seen the end once it closes its side.
            while connection.recv(4096):
                pass
    assert spooled_files() <= before
    assert stored_keys(plane, upload) == []
    assert plane.client.get(f"/v1/uploads/{upload}").json()["parts"] == []


def test_a_part_without_a_length_is_taken(plane: ControlPlane) -> None:
    data = pattern(3 * MIB)
    upload = announce(plane, len(data))
    pieces = (data[at : at + 100_000] for at in range(0, len(data), 100_000))
    with served(plane.app) as url:
        path = f"{url}/v1/uploads/{upload}/parts/1"
        assert httpx.put(path, content=pieces, headers=BYTES).status_code == 200
    complete(plane, upload)
    assert b"".join(plane.store.stream(f"uploads/{upload}/file-1")) == data


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_part_that_is_too_long_is_refused(tmp_path: Path, is_declared: bool) -> None:
    plane = ControlPlane(tmp_path, upload_part_bytes_max=MIB)
    upload = announce(plane, 9 * MIB)
    data = pattern(MIB + 1)
    content = data if is_declared else (data[at : at + 70_000] for at in range(0, MIB + 1, 70_000))
    with served(plane.app) as url:
        path = f"{url}/v1/uploads/{upload}/parts/1"
        response = httpx.put(path, content=content, headers=BYTES)
    assert response.status_code == 413
    assert str(MIB) in response.json()["detail"]
    assert stored_keys(plane, upload) == []
    plane.close()


def test_a_length_that_is_not_true_is_refused(plane: ControlPlane) -> None:
    upload = announce(plane, 9)
    response = plane.client.put(
        f"/v1/uploads/{upload}/parts/1", content=b"abc", headers=BYTES | {"Content-Length": "4"}
    )
    assert response.status_code == 400
    assert response.json()["type"] == "urn:cmcl:problem:incomplete-body"


def test_a_part_is_never_whole_in_memory(plane: ControlPlane) -> None:
    size = 24 * MIB
    upload = announce(plane, size)
    block = b"x" * 65_536

    async def pieces() -> object:
        for _ in range(size // len(block)):
            yield block

    plane.client.get("/healthz")
    tracemalloc.start()
    path = f"/v1/uploads/{upload}/parts/1"
    response = plane.client.put(path, content=pieces(), headers=BYTES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert response.status_code == 200
    assert peak < 8 * MIB


def test_a_full_device_is_no_room() -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        spool = Spool(file)
        asyncio.run(spool.add(b"abc"))
        with pytest.raises(DiskFull, match="disk of the service is full"):
            asyncio.run(spool.finish())


def test_a_full_disk_is_reported_and_leaves_nothing(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = announce(plane, 3 * MIB)
    with _small_disk(tmp_path / "small") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        path = f"/v1/uploads/{upload}/parts/1"
        response = plane.client.put(path, content=pattern(3 * MIB), headers=BYTES)
        assert (response.status_code, response.json()["title"]) == (
            507,
            "Insufficient storage",
        )
        assert list(disk.iterdir()) == []
        small = plane.client.put(path, content=b"abc", headers=BYTES)
        assert small.status_code == 200
    assert len(stored_keys(plane, upload)) == 1


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


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A real one of two mebibytes, where this user may mount it."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk; /dev/full was tried instead")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
