"""Clients that are too slow, send too much, disconnect or half-close; other clients are served."""

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.fakes.served_app import served
from tests.fakes.waiting import until
from tests.unit.serve.conftest import MODEL, Replica
from workers.serve.api.app import create_api

BODY = json.dumps({"model": MODEL, "modality": "image", "input": [1, 2, 3, 4, 5]}).encode()
SECONDS = 120.0


@pytest.fixture
def address(serving: Replica) -> Iterator[tuple[str, int]]:
    """A replica whose clients have a quarter of a second for their bodies."""
    args = serving.args.model_copy(update={"body_seconds": 0.25})
    with served(serving.app_of(args)) as url:
        parsed = httpx.URL(url)
        yield parsed.host, parsed.port or 0


def head(length: int, *headers: str) -> bytes:
    lines = [
        "POST /v1/embeddings HTTP/1.1",
        "host: 127.0.0.1",
        f"content-length: {length}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def connected(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=SECONDS)


def status_of(client: socket.socket) -> int:
    return int(client.recv(65536).split(b" ", 2)[1])


def assert_others_are_answered(address: tuple[str, int]) -> None:
    with connected(address) as client:
        client.sendall(head(len(BODY)) + BODY)
        assert status_of(client) == 200


def test_a_body_that_drips_is_given_up(address: tuple[str, int]) -> None:
    """Each byte comes in time; all of them do not."""
    with connected(address) as client:
        client.sendall(head(len(BODY)))
        client.settimeout(0.02)
        for byte in BODY:
            client.sendall(bytes([byte]))
            try:
                answer = client.recv(65536)
            except TimeoutError:
                continue
            assert answer.startswith(b"HTTP/1.1 408")
            break
        else:
            pytest.fail("the whole body was waited for")
    assert_others_are_answered(address)


def test_a_half_closed_client_does_not_affect_others(serving: Replica) -> None:
    """uvicorn treats it as disconnected and drops its request; HAProxy answers 400 (tests/ray).

    It asks for a version that does not come, so that it is not answered before it is gone.
    """
    parts = serving.parts(serving.args.model_copy(update={"min_version_wait_seconds": 60}))
    with served(create_api(parts)) as url:
        address = (httpx.URL(url).host, httpx.URL(url).port or 0)
        with connected(address) as client:
            client.sendall(head(len(BODY), "x-min-model-version: 99") + BODY)
            until(lambda: parts.admission.requests.total == 1)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(65536) == b""
        until(lambda: parts.admission.requests.total == 0)
        assert_others_are_answered(address)
    assert list(serving.metrics.errors) == [499]


def test_a_client_that_is_gone_in_the_middle_costs_nothing(serving: Replica) -> None:
    """It is gone long before its body would be given up."""
    args = serving.args.model_copy(update={"body_seconds": SECONDS})
    with served(serving.app_of(args)) as url:
        address = (httpx.URL(url).host, httpx.URL(url).port or 0)
        for _ in range(20):
            with connected(address) as client:
                client.sendall(head(len(BODY)) + BODY[:10])
        assert_others_are_answered(address)
        until(lambda: len(serving.metrics.errors) == 20)
    assert set(serving.metrics.errors) == {499}


def test_huge_headers_are_refused(address: tuple[str, int]) -> None:
    with connected(address) as client:
        client.sendall(head(len(BODY), "x-much: " + "x" * 40_000) + BODY)
        assert status_of(client) == 431
    assert_others_are_answered(address)


def test_a_million_rows_are_refused_before_they_are_embedded(serving: Replica) -> None:
    args = serving.args.model_copy(update={"max_body_bytes": 16 << 20})
    serving.app = serving.app_of(args)
    serving.metrics.batches.clear()
    response = serving.embed(input=[[1]] * 1_000_000)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "input has 1000000 rows; permitted are 1 to 50"
    assert serving.metrics.batches == []


def test_a_body_in_chunks_may_not_be_longer_than_others(address: tuple[str, int]) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    url = f"http://{address[0]}:{address[1]}/v1/embeddings"
    assert httpx.post(url, content=pieces(), timeout=SECONDS).status_code == 413
    assert httpx.post(url, content=iter([BODY[:9], BODY[9:]])).status_code == 200
