"""Two replicas behind HAProxy with our settings: no request is lost while replicas start and stop, nor
while more requests wait than Ray would admit by default.
"""

import json
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from cmcl.contract.model import ModelSpec
from cmcl.stack import LocalStack
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.uris import open_store
from tests.fakes.versions import publish_version, random_heads
from tests.ray.attempts import ray_processes
from tests.ray.second_application import CHANGED, DELETED, DEPLOYED, NAME, PREFIX

MODEL = "deaths"
SPEC = ModelSpec(width=8, modalities={"image": 5, "text": 4})
BODY = {"model": MODEL, "modality": "image", "input": [1, 2, 3, 4, 5]}
REPLICA = f"ServeReplica:{NAME}:"
CLIENTS, HELD = 4, 8
# Between two requests of one client: without it, the load would slow down what the tests wait for.
PAUSE_SECONDS = 0.005
# For each replica more than Ray would take at once (256), and less than one takes.
MANY = 640
SECONDS = 300.0


def publish(store: ObjectStore, version: int) -> None:
    publish_version(store, MODEL, version, SPEC, random_heads(SPEC, version), generation=version)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def outcome_of(client: httpx.Client, min_version: int = 1) -> str:
    """The status, or how the connection ended."""
    headers = {"x-min-model-version": str(min_version)}
    try:
        answer = client.post(f"{PREFIX}/v1/embeddings", json=BODY, headers=headers)
    except httpx.HTTPError as error:
        return type(error).__name__
    return str(answer.status_code)


@dataclass
class ClientLoad:
    """Clients that send requests continuously, and others that wait with one request each."""

    url: str
    stop: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)

    def ask_all_the_time(self) -> None:
        with httpx.Client(base_url=self.url, timeout=SECONDS) as client:
            while not self.stop.wait(PAUSE_SECONDS):
                self.asked.append(outcome_of(client))

    def hold(self, min_version: int) -> None:
        with httpx.Client(base_url=self.url, timeout=2 * SECONDS) as client:
            self.held.append(outcome_of(client, min_version))

    def wait_for_more(self, answers: int = 50) -> None:
        enough = len(self.asked) + answers
        wait_until(lambda: len(self.asked) >= enough, "requests are no longer answered")


@contextmanager
def crowd(url: str, min_version: int) -> Iterator[ClientLoad]:
    """Run the clients during the block; at its end every client has a response or an error."""
    made = ClientLoad(url)
    threads = [threading.Thread(target=made.ask_all_the_time) for _ in range(CLIENTS)]
    threads += [threading.Thread(target=made.hold, args=(min_version,)) for _ in range(HELD)]
    for thread in threads:
        thread.start()
    try:
        made.wait_for_more()
        assert made.held == [], "these were to wait"
        yield made
    finally:
        made.stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def second(stack: LocalStack) -> Iterator[subprocess.Popen[bytes]]:
    """The process that deploys the second application; version 1 is published for it."""
    publish(open_store(stack.store_uri), 1)
    command = [sys.executable, "-m", "tests.ray.second_application", stack.store_uri]
    process = stack.start_driver(command)
    wait_for_line(stack, DEPLOYED)
    yield process
    process.kill()
    process.wait()


def wait_for_line(stack: LocalStack, line: str) -> None:
    def is_there() -> bool:
        return line in stack.log("driver").read_text().splitlines()

    wait_until(is_there, f"{line!r} was not printed")


def wait_for_version(url: str, version: int) -> None:
    with httpx.Client(base_url=url, timeout=SECONDS) as client:
        wait_until(lambda: outcome_of(client, version) == "200", f"version {version} did not come")


def application_at(url: str) -> str:
    # On a new connection, and without reading certificates, which takes longer than the answer.
    with httpx.Client(base_url=url, timeout=SECONDS, verify=False) as client:
        application: str = client.get(f"{PREFIX}/healthz").raise_for_status().json()["application"]
    return application


def request_for_version(version: int) -> bytes:
    body = json.dumps(BODY).encode()
    lines = [
        *(f"POST {PREFIX}/v1/embeddings HTTP/1.1", "host: localhost", "connection: close"),
        *(f"content-length: {len(body)}", f"x-min-model-version: {version}"),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextmanager
def many_waiting(url: str, version: int) -> Iterator[list[socket.socket]]:
    """More connections than one thread per connection could serve."""
    address = (httpx.URL(url).host, httpx.URL(url).port or 80)
    with ExitStack() as closing:
        waiting = [
            closing.enter_context(socket.create_connection(address, timeout=SECONDS))
            for _ in range(MANY)
        ]
        for each in waiting:
            each.sendall(request_for_version(version))
        yield waiting


@pytest.mark.usefixtures("second")
def test_many_that_wait_for_a_version_do_not_delay_others(serve_url: str) -> None:
    wait_for_version(serve_url, 1)
    with (
        httpx.Client(base_url=serve_url, timeout=SECONDS) as client,
        many_waiting(serve_url, version=99) as waiting,
    ):
        assert [outcome_of(client) for _ in range(CLIENTS * HELD)] == ["200"] * CLIENTS * HELD
        answered, _, _ = select.select(waiting, [], [], 0)
        assert answered == [], "a new request was answered before the waiting ones"


@pytest.mark.usefixtures("second")
def test_requests_of_a_replica_that_is_killed_are_answered_by_the_other(
    stack: LocalStack, serve_url: str, store: ObjectStore
) -> None:
    wait_for_version(serve_url, 1)
    replicas = ray_processes(stack, REPLICA)
    assert len(replicas) == 2
    with crowd(serve_url, min_version=2) as clients:
        replicas[0].kill()
        clients.wait_for_more()
        publish(store, 2)
        clients.wait_for_more()
    assert clients.held == ["200"] * HELD
    assert Counter(clients.asked) == {"200": len(clients.asked)}


def test_requests_are_answered_while_the_application_is_changed_and_deleted(
    stack: LocalStack, serve_url: str, store: ObjectStore, second: subprocess.Popen[bytes]
) -> None:
    publish(store, 3)
    wait_for_version(serve_url, 3)
    before = application_at(serve_url)
    with crowd(serve_url, min_version=4) as clients:
        second.send_signal(signal.SIGUSR1)
        # Old replicas get no new requests, and end once their pending requests are answered.
        wait_until(
            lambda: all(application_at(serve_url) != before for _ in range(10)),
            "the new replicas do not answer",
        )
        publish(store, 4)
        wait_for_line(stack, CHANGED)
        clients.wait_for_more()
    assert clients.held == ["200"] * HELD
    assert Counter(clients.asked) == {"200": len(clients.asked)}

    with crowd(serve_url, min_version=5) as clients:
        second.send_signal(signal.SIGTERM)
        wait_until(lambda: clients.asked[-1] != "200", "it continues to answer")
        publish(store, 5)
        wait_for_line(stack, DELETED)
    assert clients.held == ["200"] * HELD
    # Later clients are rejected with a message; no connection is cut.
    assert set(clients.asked) <= {"200", "404", "503"}
