"""Errands of one name follow each other, and none keeps another from its turn."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fakes.executor import ScarceThreads
from workers.serve.versions.follower import Errands

PATIENCE = 60.0


@pytest.fixture
def errands() -> Iterator[Errands]:
    """With one thread, so that whoever keeps it keeps everything."""
    made = Errands(ThreadPoolExecutor(1))
    yield made
    made.close()


def test_what_is_begun_again_and_again_starves_nobody(errands: Errands) -> None:
    """As with wake-ups that come faster than a pointer is read."""
    reached = threading.Event()

    def begin_again() -> None:
        if not reached.is_set():
            errands.begin("busy", begin_again)

    errands.begin("busy", begin_again)
    errands.begin("patient", reached.set)
    assert reached.wait(PATIENCE)
    errands.wait()


def test_what_waits_for_its_turn_is_begun_once(errands: Errands) -> None:
    runs: list[str] = []
    go_on, has_begun = threading.Event(), threading.Event()

    def hold() -> None:
        has_begun.set()
        assert go_on.wait(PATIENCE)

    errands.begin("first", hold)
    assert has_begun.wait(PATIENCE)
    for _ in range(5):
        errands.begin("second", lambda: runs.append("second"))
    go_on.set()
    errands.wait()
    assert runs == ["second"]


def test_what_is_begun_while_it_runs_runs_once_more(errands: Errands) -> None:
    runs: list[int] = []
    go_on, has_begun = threading.Event(), threading.Event()

    def hold() -> None:
        runs.append(1)
        has_begun.set()
        assert go_on.wait(PATIENCE)

    errands.begin("one", hold)
    assert has_begun.wait(PATIENCE)
    for _ in range(5):
        errands.begin("one", hold)
    go_on.set()
    errands.wait()
    assert len(runs) == 2


def test_an_errand_without_a_thread_can_be_begun_later() -> None:
    threads, done = ScarceThreads(1), threading.Event()
    errands = Errands(threads)
    threads.are_gone = True
    with pytest.raises(RuntimeError):
        errands.begin("one", done.set)
    threads.are_gone = False
    errands.begin("one", done.set)
    assert done.wait(PATIENCE)
    errands.close()


def test_what_an_executor_has_kept_and_refused_does_not_run() -> None:
    threads, runs, done = ScarceThreads(2), [], threading.Event()
    errands = Errands(threads)
    threads.are_gone = True
    with pytest.raises(RuntimeError):
        errands.begin("one", lambda: runs.append("kept"))
    threads.are_gone = False
    errands.begin("one", done.set)
    assert done.wait(PATIENCE)
    errands.wait()
    errands.close()
    threads.shutdown()
    assert runs == []
