"""The live pointer: written, removed, repaired, and announced to the endpoint."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import httpx
import pytest

from cmcl.contract.version import ANNOUNCEMENTS, LivePointer
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import read_live, write_live
from service.jobs.reconciler import Reconciler
from service.registry import live_pointer
from service.registry.live_pointer import Announcer
from tests.fakes.control_plane import ControlPlane
from tests.fakes.crashes import Crash, FaultAtMoment
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.receiver import Receiver, receiving
from tests.fakes.rounds import run_round
from tests.fakes.waiting import until


def _pointer(three: ControlPlane) -> LivePointer:
    """live.json, after a round of the reconciler."""
    three.tick()
    found = read_live(three.store, "scenes")
    assert found is not None
    return found


def _delete(three: ControlPlane) -> None:
    assert three.client.request("DELETE", "/v1/models/scenes").status_code == 204


def test_live_json_has_the_owner_of_the_model(three: ControlPlane) -> None:
    assert _pointer(three).owner == three.model().owner == "default"


def test_a_retired_version_reaches_the_replicas(three: ControlPlane) -> None:
    before = _pointer(three)
    for number in (2, 1, 1):
        path = f"/v1/models/scenes/versions/{number}"
        assert three.client.request("DELETE", path).status_code == 204
    after = _pointer(three)
    assert (after.retired, after.generation) == ((1, 2), before.generation)
    assert after.revision == before.revision + 2


def test_a_deleted_model_has_no_pointer_after_one_round(three: ControlPlane) -> None:
    _pointer(three)
    _delete(three)
    three.tick()
    assert read_live(three.store, "scenes") is None
    assert three.model().is_pointer_written


def test_a_pointer_that_cannot_be_removed_now_is_removed_later(three: ControlPlane) -> None:
    three.store.broken = "live.json"
    _delete(three)
    three.tick(2)
    three.store.broken = None
    assert read_live(three.store, "scenes") is not None
    three.clock.advance(30)
    three.tick(2)
    assert read_live(three.store, "scenes") is None


class LateStore(FlakyStore):
    """A store before whose writes the state changes, after the database was read."""

    def __init__(self, store: ObjectStore, during: Callable[[], None]) -> None:
        super().__init__(store)
        self._during = during

    def put(self, key: str, data: bytes) -> None:
        self._during()
        super().put(key, data)


def test_a_write_that_comes_late_does_not_bring_a_deleted_model_back(three: ControlPlane) -> None:
    def during() -> None:
        _delete(three)
        three.tick()
        assert read_live(three.store, "scenes") is None

    live_pointer.write(replace(three.context, store=LateStore(three.store, during)), "scenes")
    assert read_live(three.store, "scenes") is not None
    three.tick()
    assert read_live(three.store, "scenes") is None


def test_a_late_write_before_a_crash_is_repaired_at_the_next_start(three: ControlPlane) -> None:
    late = _pointer(three)
    _delete(three)
    three.tick()
    write_live(three.store, "scenes", late)
    successor = ControlPlane(three.folder, three.launcher, three.clock)
    successor.tick(2)
    assert read_live(three.store, "scenes") is None
    successor.close()


@pytest.mark.parametrize("dies_at", range(1, 16))
def test_a_death_at_any_moment_keeps_no_pointer_of_a_deleted_model(
    three: ControlPlane, dies_at: int
) -> None:
    _delete(three)
    lifeline = FaultAtMoment(dies_at)
    with suppress(Crash):
        for _ in range(3):
            run_round(three.crashing_reconciler(lifeline))
            three.clock.advance(1)
    three.clock.advance(2)
    run_round(Reconciler(three.context))
    assert read_live(three.store, "scenes") is None
    assert three.model().is_pointer_written


WAIT_SECONDS = 120.0


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


def test_a_written_pointer_is_announced(tmp_path: Path, receiver: Receiver) -> None:
    plane = ControlPlane(tmp_path, embeddings_url=server(receiver))
    plane.create_model()
    plane.run_to_end(plane.post_dataset())
    with plane.client.running():
        until(lambda: bool(receiver.received))
    (message,) = receiver.received
    assert (message.path, message.body) == (ANNOUNCEMENTS, b"")
    plane.close()


def test_an_unavailable_endpoint_slows_no_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plane = ControlPlane(tmp_path, embeddings_url="http://127.0.0.1:1")
    plane.create_model()
    plane.run_to_end(plane.post_dataset())
    assert read_live(plane.store, "scenes") is not None
    with plane.client.running():
        until(lambda: "announcement to http://127.0.0.1:1" in caplog.text)
    plane.close()


def test_all_changes_that_wait_are_one_announcement(
    receiver: Receiver, client: httpx.Client
) -> None:
    announcer = Announcer(server(receiver))
    announcer.announce()
    announcer.announce()
    announcer.send(client)
    announcer.send(client)
    assert len(receiver.received) == 1


def says_nothing(connection: socket.socket) -> None:
    connection.recv(1)


@pytest.mark.parametrize("answer", [503, says_nothing])
def test_an_endpoint_that_fails_is_left_alone_for_a_while(
    receiver: Receiver, client: httpx.Client, answer: int | Callable[[socket.socket], None]
) -> None:
    receiver.answers = [answer, 202]
    now = 100.0
    announcer = Announcer(server(receiver), lambda: now)
    timeout = httpx.Timeout(WAIT_SECONDS, read=0.2)
    with httpx.Client(timeout=timeout, trust_env=False) as short_timeout:
        for _ in range(3):
            announcer.announce()
            announcer.send(short_timeout)
        until(lambda: receiver.answers == [202])
    now += 5
    announcer.announce()
    announcer.send(client)
    assert len(receiver.received) == 2


def test_a_change_during_an_announcement_does_not_wait_and_is_announced_by_the_next_one(
    receiver: Receiver, client: httpx.Client
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        asked.set()
        go_on.wait(WAIT_SECONDS)

    receiver.answers = [hold]
    # The held one gets no answer: the clock is beyond the pause after it.
    announcer = Announcer(server(receiver), count(step=10).__next__)
    announcer.announce()
    sending = threading.Thread(target=announcer.send, args=[client])
    sending.start()
    assert asked.wait(WAIT_SECONDS)
    announcer.announce()
    assert sending.is_alive(), "the first is on its way still"
    go_on.set()
    sending.join(WAIT_SECONDS)
    assert not sending.is_alive()
    announcer.send(client)
    assert len(receiver.received) == 2
