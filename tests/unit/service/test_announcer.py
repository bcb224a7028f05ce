"""A write of live.json is announced to the endpoint at once, without a wait for its response."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from cmcl.contract.version import ANNOUNCEMENTS, LivePointer
from cmcl.storage.versions import read_live
from service.registry.live_pointer import Announcer
from tests.fakes.control_plane import ControlPlane
from tests.fakes.receiver import Receiver, receiving

WAIT_SECONDS = 120.0
FIRST, SECOND = LivePointer(generation=1, version=1), LivePointer(generation=2, version=7)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=WAIT_SECONDS, trust_env=False) as client:
        yield client


def server(receiver: Receiver) -> str:
    return f"http://127.0.0.1:{receiver.port}"


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_written_pointer_is_announced_as_it_was_written(
    tmp_path: Path, receiver: Receiver
) -> None:
    plane = ControlPlane(tmp_path, embeddings_url=server(receiver))
    plane.create_model()
    plane.run_to_end(plane.post_dataset())
    with plane.client.running():
        until(lambda: bool(receiver.received))
    pointer = read_live(plane.store, "scenes")
    assert pointer is not None
    (message,) = receiver.received
    assert message.path == ANNOUNCEMENTS
    assert json.loads(message.body) == {
        "model": "scenes",
        "generation": pointer.generation,
        "revision": pointer.revision,
    }
    plane.close()


def test_an_unavailable_endpoint_slows_no_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plane = ControlPlane(tmp_path, embeddings_url="http://127.0.0.1:1")
    plane.create_model()
    plane.run_to_end(plane.post_dataset())
    assert read_live(plane.store, "scenes") is not None
    with plane.client.running():
        until(lambda: "announcement of model scenes" in caplog.text)
    plane.close()


def test_pending_changes_are_coalesced_to_the_last(
    receiver: Receiver, client: httpx.Client
) -> None:
    announcer = Announcer(server(receiver))
    announcer.announce("scenes", FIRST)
    announcer.announce("scenes", SECOND)
    announcer.announce("streets", FIRST)
    announcer.send(client)
    announcer.send(client)
    bodies = [json.loads(message.body) for message in receiver.received]
    assert [(body["model"], body["generation"]) for body in bodies] == [
        ("scenes", 2),
        ("streets", 1),
    ]


def says_nothing(connection: socket.socket) -> None:
    connection.recv(1)


@pytest.mark.parametrize("answer", [503, says_nothing])
def test_an_endpoint_that_fails_is_left_alone_for_a_while(
    receiver: Receiver, client: httpx.Client, answer: int | Callable[[socket.socket], None]
) -> None:
    receiver.answers = [answer, 202]
    now = 100.0
    announcer = Announcer(server(receiver), lambda: now)
    for model in ("scenes", "streets", "rooms"):
        announcer.announce(model, FIRST)
    timeout = httpx.Timeout(WAIT_SECONDS, read=0.2)
    with httpx.Client(timeout=timeout, trust_env=False) as short_timeout:
        announcer.send(short_timeout)
        until(lambda: receiver.answers == [202])
    now += 5
    announcer.announce("scenes", SECOND)
    announcer.send(client)
    assert len(receiver.received) == 2


def test_without_an_address_nothing_is_kept_or_sent(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    announcer = Announcer("")
    announcer.announce("scenes", FIRST)
    announcer.send(client)
    assert "announcement" not in caplog.text


def test_announcing_does_not_wait_for_one_that_is_being_sent(
    receiver: Receiver, client: httpx.Client
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        asked.set()
        go_on.wait(WAIT_SECONDS)

    receiver.answers = [hold]
    announcer = Announcer(server(receiver))
    announcer.announce("scenes", FIRST)
    sending = threading.Thread(target=announcer.send, args=[client])
    sending.start()
    assert asked.wait(WAIT_SECONDS)
    announcer.announce("scenes", SECOND)
    assert sending.is_alive(), "the first is on its way still"
    go_on.set()
    sending.join(WAIT_SECONDS)
    assert not sending.is_alive()
