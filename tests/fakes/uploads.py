"""Sending a file through the API, as a client does it."""

import hashlib
from typing import Any

from tests.fakes.control_plane import ControlPlane

BYTES = {"Content-Type": "application/octet-stream"}
MIB = 1 << 20


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which all kibibytes differ."""
    blocks = (hashlib.sha256(f"{seed} {at}".encode()).digest() * 32 for at in range(size // 1024))
    return b"".join(blocks) + b"\0" * (size % 1024)


def announce(plane: ControlPlane, size: int, **more: object) -> str:
    """Create an upload and return its id."""
    body = {"filename": "pairs.parquet", "bytes": size, **more}
    response = plane.client.post("/v1/uploads", json=body)
    assert response.status_code == 201, response.text
    upload: str = response.json()["id"]
    return upload


def send(plane: ControlPlane, upload: str, data: bytes) -> dict[str, Any]:
    """Send the file; return the response."""
    response = plane.client.put(f"/v1/uploads/{upload}/file", content=data, headers=BYTES)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def upload_whole(plane: ControlPlane, data: bytes) -> str:
    """Upload a whole file; return the reference for a dataset."""
    uri: str = send(plane, announce(plane, len(data)), data)["uri"]
    return uri


def stored_keys(plane: ControlPlane, upload: str) -> list[str]:
    """Its objects in storage."""
    return list(plane.store.keys(f"uploads/{upload}/"))
