"""What happens is carried on at once, and a bell that is never rung costs time alone."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.control.bell import Bell
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
    for _ in range(1000):
        if rare.job(job).state == JobState.RUNNING:
            break
        stop.wait(0.01)
    stop.set()
    rare.context.bell.ring()
    thread.join(10)
    assert rare.job(job).state == JobState.RUNNING
    assert not thread.is_alive()


def test_a_ring_before_the_wait_is_not_missed() -> None:
    bell = Bell()
    bell.ring()
    bell.wait(3600)


def test_a_wait_ends_without_a_ring() -> None:
    Bell().wait(0.01)
