"""HAProxy in front of the replicas: who closes half of a socket or sends absurd headers is told so."""

import json
import socket
import time

import httpx

from tests.fakes.versions import publish_version, random_heads
from workers.contract.model import ModelSpec
from workers.storage.port import ObjectStore

MODEL = "behind-the-proxy"
SPEC = ModelSpec(width=8, modalities={"image": 5, "text": 4})
BODY = json.dumps({"model": MODEL, "modality": "image", "input": [1, 2, 3, 4, 5]}).encode()
SECONDS = 120.0
STARTING_SECONDS = 300.0


def request(*headers: str) -> bytes:
    lines = [
        *("POST /v1/embeddings HTTP/1.1", "host: localhost", f"content-length: {len(BODY)}"),
        *("x-min-model-version: 1", "connection: close", *headers),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + BODY


def answer(url: str, sent: bytes, *, half_close: bool) -> bytes:
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80), timeout=SECONDS) as client:
        client.sendall(sent)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := client.recv(65536):
            received += chunk
    return received


def wait_until_live(url: str) -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    while b"200 OK" not in answer(url, request(), half_close=False):
        assert time.monotonic() < deadline, "no version came"


def test_half_closed_clients_and_absurd_headers_are_answered_by_the_proxy(
    serve_url: str, store: ObjectStore
) -> None:
    publish_version(store, MODEL, 1, SPEC, random_heads(SPEC, 1), generation=1)
    wait_until_live(serve_url)
    # Whoever closes counts as gone, unless the whole request went on to a replica before.
    closed = answer(serve_url, request(), half_close=True)
    assert closed.split(b" ", 2)[1] in (b"400", b"200")
    much = request("x-much: " + "x" * 50_000)
    assert answer(serve_url, much, half_close=False).split(b" ", 2)[1] in (b"400", b"431")
    assert b"200 OK" in answer(serve_url, request(), half_close=False)
