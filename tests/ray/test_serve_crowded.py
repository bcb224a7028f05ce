"""More requests than a replica of Ray takes by itself, all of them waiting: others are answered."""

import json
import select
import socket
import time

import httpx

from tests.fakes.versions import publish_version, random_heads
from workers.contract.model import ModelSpec
from workers.storage.port import ObjectStore

MODEL = "crowded"
SPEC = ModelSpec(width=8, modalities={"image": 5, "text": 4})
BODY = json.dumps({"model": MODEL, "modality": "image", "input": [1, 2, 3, 4, 5]}).encode()
# Above what Ray would take at once before (256), below what a replica takes.
CROWD = 400
SECONDS = 120.0
STARTING_SECONDS = 300.0


def waiting_for_a_version() -> bytes:
    lines = [
        *("POST /v1/embeddings HTTP/1.1", "host: localhost", f"content-length: {len(BODY)}"),
        *("x-min-model-version: 99", "connection: close"),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + BODY


def ask(url: str) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(f"{url}/v1/embeddings", content=BODY, headers=headers, timeout=SECONDS)


def still_waiting(crowd: list[socket.socket]) -> int:
    answered, _, _ = select.select(crowd, [], [], 0)
    return len(crowd) - len(answered)


def answered_in_a_crowd(url: str) -> bool | None:
    """Whether somebody was answered while all of a crowd waited; None if it did not hold so long."""
    address = (httpx.URL(url).host, httpx.URL(url).port or 80)
    crowd = [socket.create_connection(address, timeout=SECONDS) for _ in range(CROWD)]
    try:
        for each in crowd:
            each.sendall(waiting_for_a_version())
        time.sleep(0.3)
        if still_waiting(crowd) < CROWD:
            return None
        answer = ask(url)
        assert answer.status_code == 200, answer.text
        return still_waiting(crowd) == CROWD
    finally:
        for each in crowd:
            each.close()


def test_a_crowd_that_waits_for_a_version_holds_up_nobody(
    serve_url: str, store: ObjectStore
) -> None:
    publish_version(store, MODEL, 1, SPEC, random_heads(SPEC, 1), generation=1)
    deadline = time.monotonic() + STARTING_SECONDS
    while ask(serve_url).status_code != 200:
        assert time.monotonic() < deadline, "no version came"
    # A busy machine may need longer for the crowd to come than it waits, which tells nothing.
    while not answered_in_a_crowd(serve_url):
        assert time.monotonic() < deadline, "whoever asked was answered after those who wait"
