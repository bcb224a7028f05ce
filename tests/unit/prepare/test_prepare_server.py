"""The driver: when it carries out each request, and how the request ends."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.dataset import RejectedRow
from cmcl.contract.errors import StorageUnavailable
from cmcl.contract.job import StageReport
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import PrepareFailure, PrepareProgress, PrepareRequest
from cmcl.storage import layout
from cmcl.storage.datasets import read_rejected
from cmcl.storage.documents import read_document
from cmcl.storage.local import LocalStore
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.preparation import Ground
from workers.prepare.dataset import PreparationFailed
from workers.prepare.progress import DatasetProgress, ProgressWriter
from workers.prepare.server import PrepareServer, chosen
from workers.prepare.units import Prepared

SPEC = ModelSpec.model_validate({"width": 8, "modalities": {"image": 4, "text": 3}})
WAIT = 30.0


class Carried:
    """Replaces `prepare_dataset`: records the requests, and does what the test sets."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.do: Callable[[PrepareRequest, DatasetProgress], None] = lambda request, progress: None
        self.release = threading.Event()

    def __call__(self, request: PrepareRequest, progress: DatasetProgress) -> None:
        self.started.append((request.dataset, request.request))
        self.do(request, progress)

    def until_released(self, request: PrepareRequest, progress: DatasetProgress) -> None:
        """Work that ends when it is released or cancelled."""
        while not self.release.wait(0.01):
            progress.check("")


class Seconds:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(FlakyStore(LocalStore(tmp_path / "store")), tmp_path / "theirs", SPEC)


@pytest.fixture
def carried() -> Carried:
    return Carried()


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture
def server(
    ground: Ground, carried: Carried, seconds: Seconds, executor: Executor
) -> Iterator[PrepareServer]:
    writer = ProgressWriter(ground.store)
    found = PrepareServer(ground.store, carried, executor, writer, 3, seconds)
    yield found
    found.close()


def ask(
    ground: Ground, dataset: str, owner: str = "ann", request: int = 0, **fields: object
) -> None:
    shards = ({"uri": (ground.folder / "a").as_uri()},)
    ground.request(dataset=dataset, owner=owner, request=request, shards=shards, **fields)


def withdraw(ground: Ground, dataset: str) -> None:
    ground.store.delete(layout.preparation_request(dataset))


def steps_until(server: PrepareServer, condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    for _ in range(int(WAIT / 0.01)):
        server.step()
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen")


def test_a_request_is_carried_out_once(
    ground: Ground, server: PrepareServer, carried: Carried
) -> None:
    ask(ground, "ds-1")
    steps_until(server, lambda: server.is_idle)
    server.step()
    assert carried.started == [("ds-1", 0)]


def test_a_retry_is_carried_out_again(
    ground: Ground, server: PrepareServer, carried: Carried, seconds: Seconds
) -> None:
    ask(ground, "ds-1")
    steps_until(server, lambda: server.is_idle)
    ask(ground, "ds-1", request=1)
    seconds.now += 2
    steps_until(server, lambda: len(carried.started) == 2 and server.is_idle)
    assert carried.started == [("ds-1", 0), ("ds-1", 1)]


def test_work_ends_when_its_request_disappears(
    ground: Ground, server: PrepareServer, carried: Carried
) -> None:
    carried.do = carried.until_released
    ask(ground, "ds-1")
    steps_until(server, lambda: carried.started)
    withdraw(ground, "ds-1")
    steps_until(server, lambda: server.is_idle)
    assert not carried.release.is_set()
    assert list(ground.store.keys("datasets/")) == []


def test_a_retry_cancels_the_work_of_the_request_before(
    ground: Ground, server: PrepareServer, carried: Carried, seconds: Seconds
) -> None:
    carried.do = carried.until_released
    ask(ground, "ds-1")
    steps_until(server, lambda: carried.started)
    ask(ground, "ds-1", request=1)
    seconds.now += 2
    steps_until(server, lambda: len(carried.started) == 2)
    carried.release.set()
    steps_until(server, lambda: server.is_idle)


def test_a_failure_is_written_with_its_reason(
    ground: Ground, server: PrepareServer, carried: Carried
) -> None:
    row = RejectedRow(id="a", file="file:///a", row=3, place="a.jsonl line 8", reason="it is empty")

    def fail(request: PrepareRequest, progress: DatasetProgress) -> None:
        raise PreparationFailed(
            "invalid_dataset", "too many bad rows", Prepared(rejected=(row,) * 30, needed_share=0.3)
        )

    carried.do = fail
    ask(ground, "ds-1", request=2, traceparent="00-trace")
    steps_until(server, lambda: server.is_idle)
    key = layout.preparation_file("ds-1", "stages")
    assert read_document(ground.store, key, StageReport).traceparent == "00-trace"
    key = layout.preparation_file("ds-1", "failure")
    assert read_document(ground.store, key, PrepareFailure) == PrepareFailure(
        request=2,
        reason="invalid_dataset",
        message="too many bad rows",
        rejected_rows=30,
        rejected=(row,) * 20,
        needed_share=0.3,
    )
    assert read_rejected(ground.store, "ds-1", 0, 100).rows == [row] * 30


def test_another_driver_does_not_repeat_what_has_failed(
    ground: Ground, carried: Carried, executor: Executor
) -> None:
    failure = PrepareFailure(request=1, reason="invalid_dataset", message="no rows")
    for dataset in ("ds-1", "ds-2"):
        key = layout.preparation_file(dataset, "failure")
        ground.store.put(key, failure.model_dump_json().encode())
    ask(ground, "ds-1", request=1)
    ask(ground, "ds-2", request=2)
    server = PrepareServer(ground.store, carried, executor, ProgressWriter(ground.store), 3)
    steps_until(server, lambda: server.is_idle)
    assert carried.started == [("ds-2", 2)]


@pytest.mark.parametrize("error", [StorageUnavailable("no answer"), RuntimeError("a bug")])
def test_an_outage_or_a_bug_is_tried_again_later_and_says_so(
    ground: Ground, server: PrepareServer, carried: Carried, seconds: Seconds, error: Exception
) -> None:
    def fail_once(request: PrepareRequest, progress: DatasetProgress) -> None:
        if len(carried.started) == 1:
            raise error

    carried.do = fail_once
    ask(ground, "ds-1")
    steps_until(server, lambda: server._known["ds-1"].not_before > 0)
    server.writer.write()
    text = ground.store.read(layout.preparation_file("ds-1", "progress"))
    assert "is tried again" in (PrepareProgress.model_validate_json(text).note or "")
    assert not server.is_idle
    server.step()
    assert len(carried.started) == 1
    seconds.now += 1
    steps_until(server, lambda: server.is_idle)
    assert len(carried.started) == 2


def test_waiting_requests_say_what_they_wait_for(
    ground: Ground, server: PrepareServer, carried: Carried
) -> None:
    carried.do = carried.until_released
    for number in range(4):
        ask(ground, f"ds-{number}", owner=f"owner-{number}")
    steps_until(server, lambda: len(carried.started) == 3)
    server.writer.write()
    text = ground.store.read(layout.preparation_file("ds-3", "progress"))
    progress = PrepareProgress.model_validate_json(text)
    assert progress.phase == "waiting"
    assert progress.note == "waits while 3 datasets are prepared"
    carried.release.set()
    steps_until(server, lambda: server.is_idle)


def requests(*owners: str) -> list[PrepareRequest]:
    named = {"model": "m", "name": "n", "spec": SPEC, "shards": ()}
    pair = {"first": "image", "second": "text"}
    return [
        PrepareRequest.model_validate(
            {**named, "dataset": f"{owner}-{n}", "request": 0, "owner": owner, "pair": pair}
        )
        for n, owner in enumerate(owners)
    ]


@pytest.mark.parametrize(
    ("waiting", "running", "places", "started"),
    [
        ("aaaa", "", 4, "aaa"),
        ("aaab", "", 4, "aba"),
        ("aaa", "b", 4, "aa"),
        ("ab", "aaa", 4, "b"),
        ("aa", "", 1, "a"),
        ("bb", "aa", 4, "b"),
        ("", "a", 4, ""),
    ],
)
def test_owners_take_turns_and_the_last_place_is_for_one_without_any(
    waiting: str, running: str, places: int, started: str
) -> None:
    found = chosen(requests(*waiting), requests(*running), places)
    assert sorted(request.owner for request in found) == sorted(started)


def test_a_request_that_cannot_be_read_does_not_end_the_driver(
    ground: Ground, server: PrepareServer, carried: Carried
) -> None:
    ground.store.put(layout.preparation_request("ds-0"), b"{")
    ask(ground, "ds-1")
    steps_until(server, lambda: carried.started == [("ds-1", 0)] and server.is_idle)


def test_a_request_that_cannot_be_read_is_logged_seldom_and_read_when_it_was_replaced(
    ground: Ground,
    server: PrepareServer,
    carried: Carried,
    seconds: Seconds,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ground.store.put(layout.preparation_request("ds-1"), b"{")
    for _ in range(5):
        server.step()
    assert len(caplog.records) == 1
    ask(ground, "ds-1")
    seconds.now += 60
    steps_until(server, lambda: carried.started == [("ds-1", 0)])
