"""Tasks of one key run one after another, and do not starve other keys."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fakes.executor import ScarceThreads
from workers.serve.versions.follower import KeyedExecutor

TIMEOUT = 60.0


@pytest.fixture
def executor() -> Iterator[KeyedExecutor]:
    """An executor with one thread, so that a slow task blocks everything."""
    made = KeyedExecutor(ThreadPoolExecutor(1))
    yield made
    made.close()


def test_a_resubmitted_task_does_not_starve_others(executor: KeyedExecutor) -> None:
    """As with wake-ups faster than a pointer is read."""
    reached = threading.Event()

    def begin_again() -> None:
        if not reached.is_set():
            executor.submit("busy", begin_again)

    executor.submit("busy", begin_again)
    executor.submit("waiting", reached.set)
    assert reached.wait(TIMEOUT)
    executor.wait()


def test_what_is_queued_is_begun_once(executor: KeyedExecutor) -> None:
    runs: list[str] = []
    go_on, has_begun = threading.Event(), threading.Event()

    def hold() -> None:
        has_begun.set()
        assert go_on.wait(TIMEOUT)

    executor.submit("first", hold)
    assert has_begun.wait(TIMEOUT)
    for _ in range(5):
        executor.submit("second", lambda: runs.append("second"))
    go_on.set()
    executor.wait()
    assert runs == ["second"]


def test_what_is_begun_while_it_runs_runs_once_more(executor: KeyedExecutor) -> None:
    runs: list[int] = []
    go_on, has_begun = threading.Event(), threading.Event()

    def hold() -> None:
        runs.append(1)
        has_begun.set()
        assert go_on.wait(TIMEOUT)

    executor.submit("one", hold)
    assert has_begun.wait(TIMEOUT)
    for _ in range(5):
        executor.submit("one", hold)
    go_on.set()
    executor.wait()
    assert len(runs) == 2


def test_a_task_without_a_thread_can_be_started_later() -> None:
    threads, done = ScarceThreads(1), threading.Event()
    executor = KeyedExecutor(threads)
    threads.are_gone = True
    with pytest.raises(RuntimeError):
        executor.submit("one", done.set)
    threads.are_gone = False
    executor.submit("one", done.set)
    assert done.wait(TIMEOUT)
    executor.close()


def test_what_an_executor_has_kept_and_refused_does_not_run() -> None:
    threads, runs, done = ScarceThreads(2), [], threading.Event()
    executor = KeyedExecutor(threads)
    threads.are_gone = True
    with pytest.raises(RuntimeError):
        executor.submit("one", lambda: runs.append("kept"))
    threads.are_gone = False
    executor.submit("one", done.set)
    assert done.wait(TIMEOUT)
    executor.wait()
    executor.close()
    threads.shutdown()
    assert runs == []
