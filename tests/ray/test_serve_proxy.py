"""HAProxy in front of the replicas: a client that closes half of a socket or sends oversized headers gets an error. Also
the conditions under which it resends a request of a replica that died.
"""

import json
import socket
import time

import httpx
import psutil
import pytest

from cmcl.contract.model import ModelSpec
from cmcl.stack import LocalStack
from cmcl.storage.uris import open_store
from tests.fakes.haproxy import crowd
from tests.fakes.segments import segments_received
from tests.fakes.versions import publish_version, random_heads
from tests.ray.attempts import ray_processes, wait_until

MODEL = "behind-the-proxy"
SPEC = ModelSpec(width=8, modalities={"image": 5, "text": 4})
BODY = json.dumps({"model": MODEL, "modality": "image", "input": [1, 2, 3, 4, 5]}).encode()
SECONDS = 120.0
STARTING_SECONDS = 300.0
# Less than the deadline of an unfinished head, after which its slot becomes free anyway.
STALLED_SECONDS = 5.0
PROXY_MIB = 128


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
        return read_all(client)


def read_all(client: socket.socket) -> bytes:
    received = b""
    while chunk := client.recv(65536):
        received += chunk
    return received


@pytest.fixture(scope="module")
def live_url(stack: LocalStack) -> str:
    """The URL that serves the model."""
    store = open_store(stack.store_uri)
    publish_version(store, MODEL, 1, SPEC, random_heads(SPEC, 1), generation=1)
    deadline = time.monotonic() + STARTING_SECONDS
    while b"200 OK" not in answer(stack.embeddings_url, request(), half_close=False):
        assert time.monotonic() < deadline, "no version came"
    return stack.embeddings_url


def test_half_closed_clients_and_absurd_headers_are_answered_by_the_proxy(live_url: str) -> None:
    # A client that closes counts as gone, unless the whole request was forwarded before.
    closed = answer(live_url, request(), half_close=True)
    assert closed.split(b" ", 2)[1] in (b"400", b"200")
    much = request("x-much: " + "x" * 50_000)
    assert answer(live_url, much, half_close=False).split(b" ", 2)[1] in (b"400", b"431")
    assert b"200 OK" in answer(live_url, request(), half_close=False)


def answers_on(port: int) -> bool:
    """Whether the port speaks HTTP; a replica listens to Ray as well."""
    try:
        httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=SECONDS).raise_for_status()
    except httpx.HTTPError:
        return False
    return True


def ports_of(process: psutil.Process) -> list[int]:
    connections = process.net_connections(kind="tcp")
    return [each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN]


@pytest.mark.usefixtures("live_url")
def test_a_replica_writes_head_and_body_of_an_answer_at_once(stack: LocalStack) -> None:
    [replica] = ray_processes(stack, "ServeReplica:embeddings:Embedder")
    [port] = filter(answers_on, ports_of(replica))
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as client:
        client.sendall(request())
        assert read_all(client).startswith(b"HTTP/1.1 200 OK")
        assert segments_received(client) == 1


def test_one_source_that_holds_thousands_of_connections_blocks_no_other(
    stack: LocalStack, live_url: str
) -> None:
    with crowd(stack.ports.embeddings, 4200, b"POST / HTTP/1.1\r\nx: " + b"a" * 60_000):
        for _ in range(20):
            begin = time.monotonic()
            assert b"200 OK" in answer(live_url, request(), half_close=False)
            assert time.monotonic() - begin < STALLED_SECONDS
        proxies = [
            each
            for each in psutil.process_iter(["name"])
            if each.info["name"] == "haproxy"
            and str(stack.proxy_folder) in " ".join(each.cmdline())
        ]
        assert sum(each.memory_info().rss for each in proxies) < PROXY_MIB << 20
        assert proxies


def test_what_deployed_the_endpoint_only_waits_and_withdraws_it(stack: LocalStack) -> None:
    """In memory that torch would exceed. Ray's client server would end a head that is slow to start.

    Starting an endpoint takes most of a minute, and no test of the stack that follows needs one.
    """
    process = psutil.Process(stack.processes["embeddings"].pid)
    wait_until(lambda: "--withdraw" in process.cmdline())
    assert process.memory_full_info().uss < 100 * 2**20
    assert ray_processes(stack, "ray.util.client.server") == []
    assert is_ready(stack)
    process.terminate()
    stack.processes.pop("embeddings").wait()
    assert not is_ready(stack)


def is_ready(stack: LocalStack) -> bool:
    try:
        return httpx.get(f"{stack.embeddings_url}/readyz").is_success
    except httpx.HTTPError:
        return False
