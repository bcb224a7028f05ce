"""A deleted model stops serving; one whose store fails continues."""

import pytest

from cmcl.storage import layout
from tests.unit.serve.conftest import MODEL, POLL_SECONDS, Replica

POINTER = layout.live_pointer(MODEL)


def poll(replica: Replica, times: int) -> None:
    """Poll as the follower's thread does, with a pause before each."""
    for _ in range(times):
        replica.clock.now += 2 * POLL_SECONDS
        replica.poll()


def test_a_deleted_model_is_404_and_out_of_memory(serving: Replica) -> None:
    serving.publish(version=2)
    serving.poll()
    serving.store.delete(POINTER)
    poll(serving, 3)
    serving.store.calls.clear()
    for model in (MODEL, "scenes@1", "scenes@2"):
        assert serving.embed(model=model).json()["error"]["code"] == "model_not_found"
    assert serving.store.calls == []
    assert serving.cache.bytes == 0
    assert serving.metrics.gone_models == [MODEL]


def test_a_deleted_model_stays_404_with_any_of_its_objects_left(serving: Replica) -> None:
    serving.store.delete(POINTER)
    poll(serving, 4)
    assert serving.embed().status_code == 404
    for key in list(serving.store.keys("models/")):
        serving.store.delete(key)
    poll(serving, 1)
    assert serving.embed().status_code == 404


def test_a_pointer_that_is_missing_for_a_moment_changes_nothing(serving: Replica) -> None:
    for _ in range(5):
        serving.store.delete(POINTER)
        poll(serving, 2)
        serving.point(generation=1, version=1)
        poll(serving, 1)
    assert serving.live_number() == 1
    assert serving.metrics.swaps == [(MODEL, 1)]


def test_wake_ups_without_end_make_no_model_disappear_sooner(serving: Replica) -> None:
    serving.store.delete(POINTER)
    for _ in range(20):
        serving.poll()
    assert serving.embed().headers["x-model-version"] == "1"
    poll(serving, 2)
    assert serving.embed().status_code == 404


@pytest.mark.parametrize("broken", ["live.json", "models/", ""])
def test_a_store_that_fails_deletes_no_model(serving: Replica, broken: str) -> None:
    serving.store.broken = broken
    poll(serving, 20)
    assert serving.embed().headers["x-model-version"] == "1"


def test_a_store_that_is_empty_deletes_no_model(serving: Replica) -> None:
    for key in list(serving.store.keys("")):
        serving.store.delete(key)
    poll(serving, 20)
    assert serving.embed().headers["x-model-version"] == "1"


def test_a_damaged_pointer_deletes_no_model(serving: Replica) -> None:
    serving.store.put(POINTER, b"\x00")
    poll(serving, 20)
    assert serving.embed().headers["x-model-version"] == "1"


def test_a_recreated_model_serves_with_any_generation(serving: Replica) -> None:
    serving.point(generation=9, version=1)
    serving.poll()
    serving.store.delete(POINTER)
    poll(serving, 3)
    assert serving.live_number() is None
    serving.point(generation=1, version=1)
    serving.poll()
    assert serving.embed().headers["x-model-version"] == "1"
