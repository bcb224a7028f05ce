"""What happens is carried on at once, and a signal that is missed costs only time."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.jobs.workqueue import WakeSignal
from service.states import JobState
from tests.fakes.control_plane import ControlPlane


@pytest.fixture
def rare(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane that looks by itself once an hour."""
    with ThreadPoolExecutor(1) as executor:
        plane = ControlPlane(
            tmp_path, executor=executor, reconcile_seconds=3600, lease_seconds=86400
        )
        plane.create_model()
        yield plane
        plane.close()


def test_a_posted_dataset_is_taken_up_at_once(rare: ControlPlane) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=rare.reconciler.run, args=[stop], daemon=True)
    thread.start()
    job = rare.post_dataset()
    deadline = time.monotonic() + 60
    while rare.job(job).state != JobState.RUNNING and time.monotonic() < deadline:
        stop.wait(0.01)
    stop.set()
    rare.context.wake_signal.notify("scenes")
    thread.join(60)
    assert rare.job(job).state == JobState.RUNNING
    assert not thread.is_alive()


def test_a_signal_before_the_wait_is_not_missed() -> None:
    wake_signal = WakeSignal()
    wake_signal.notify("scenes")
    wake_signal.notify("sounds")
    assert wake_signal.wait(3600) == {"scenes", "sounds"}
    assert wake_signal.wait(0) == frozenset()


def test_a_wait_ends_without_a_signal() -> None:
    assert WakeSignal().wait(0.01) == frozenset()


def test_a_signal_for_one_model_reconciles_no_other(plane: ControlPlane) -> None:
    plane.create_model("sounds")
    quiet, woken = plane.post_dataset(), plane.post_dataset("two", "sounds")
    plane.reconciler.tick(frozenset({"sounds"}))
    assert plane.job(quiet).state == JobState.QUEUED
    assert plane.job(woken).state == JobState.VALIDATING
