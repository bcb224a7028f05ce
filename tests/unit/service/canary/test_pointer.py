"""live.json: all that replicas read of a model; it is deleted with the model."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from service.jobs.reconciler import Reconciler
from service.registry import live_pointer
from tests.fakes.control_plane import ControlPlane
from tests.fakes.crashes import Crash, FaultAtMoment
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.observations import observe
from tests.fakes.rounds import run_round
from tests.unit.service.canary.conftest import CanaryApi
from tests.unit.service.maintenance.test_sweeping import keys, sweep
from workers.storage import layout
from workers.storage.object_store import ObjectStore
from workers.storage.versions import read_live, write_live


def _delete(plane: ControlPlane) -> None:
    assert plane.client.request("DELETE", "/v1/models/scenes").status_code == 204


def test_live_json_has_the_owner_of_the_model(canary_api: CanaryApi) -> None:
    assert canary_api.pointer().owner == canary_api.plane.model().owner == "default"


def test_a_retired_version_reaches_the_replicas(canary_api: CanaryApi) -> None:
    before = canary_api.pointer()
    for number in (2, 1, 1):
        path = f"/v1/models/scenes/versions/{number}"
        assert canary_api.plane.client.request("DELETE", path).status_code == 204
    after = canary_api.pointer()
    assert (after.retired, after.generation) == ((1, 2), before.generation)
    assert after.revision == before.revision + 2


def test_a_deleted_model_has_no_pointer_after_one_round(canary_api: CanaryApi) -> None:
    canary_api.put(2, share=0.1)
    canary_api.pointer()
    _delete(canary_api.plane)
    canary_api.plane.tick()
    assert read_live(canary_api.plane.store, "scenes") is None
    assert canary_api.plane.model().is_mirrored


def test_a_pointer_that_cannot_be_removed_now_is_removed_later(canary_api: CanaryApi) -> None:
    canary_api.plane.store.broken = "live.json"
    _delete(canary_api.plane)
    canary_api.plane.tick(2)
    canary_api.plane.store.broken = None
    assert read_live(canary_api.plane.store, "scenes") is not None
    canary_api.plane.clock.advance(30)
    canary_api.plane.tick(2)
    assert read_live(canary_api.plane.store, "scenes") is None


class LateStore(FlakyStore):
    """A store before whose writes the state changes, after the database was read."""

    def __init__(self, store: ObjectStore, during: Callable[[], None]) -> None:
        super().__init__(store)
        self._during = during

    def put(self, key: str, data: bytes) -> None:
        self._during()
        super().put(key, data)


def test_a_mirror_that_comes_late_does_not_bring_a_deleted_model_back(
    canary_api: CanaryApi,
) -> None:
    plane = canary_api.plane
    canary_api.put(2, share=0.1)

    def during() -> None:
        _delete(plane)
        plane.tick()
        assert read_live(plane.store, "scenes") is None

    live_pointer.mirror(replace(plane.context, store=LateStore(plane.store, during)), "scenes")
    assert read_live(plane.store, "scenes") is not None
    plane.tick()
    assert read_live(plane.store, "scenes") is None


def test_a_late_write_before_a_crash_is_repaired_at_the_next_start(canary_api: CanaryApi) -> None:
    plane = canary_api.plane
    late = canary_api.pointer()
    _delete(plane)
    plane.tick()
    write_live(plane.store, "scenes", late)
    successor = ControlPlane(plane.folder, plane.launcher, plane.clock)
    successor.tick(2)
    assert read_live(plane.store, "scenes") is None
    successor.close()


@pytest.mark.parametrize("dies_at", range(1, 16))
def test_a_death_at_any_moment_keeps_no_pointer_of_a_deleted_model(
    canary_api: CanaryApi, dies_at: int
) -> None:
    _delete(canary_api.plane)
    lifeline = FaultAtMoment(dies_at)
    with suppress(Crash):
        for _ in range(3):
            run_round(canary_api.plane.crashing_reconciler(lifeline))
            canary_api.plane.clock.advance(1)
    canary_api.plane.clock.advance(2)
    run_round(Reconciler(canary_api.plane.context))
    assert read_live(canary_api.plane.store, "scenes") is None
    assert canary_api.plane.model().is_mirrored


@pytest.mark.parametrize("promotes", [True, False])
@pytest.mark.parametrize("dies_at", range(1, 28, 2))
def test_a_canary_ends_once_wherever_the_process_dies(
    canary_api: CanaryApi, dies_at: int, promotes: bool
) -> None:
    canary_api.put(2, share=0.1, rule={"min_requests": 10, "promote_after": 10})
    canary_api.pointer()
    counts: dict[str, Any] = {"answered" if promotes else "failed": 10}
    observe(canary_api.plane.store, **counts)
    canary_api.plane.reconciler = canary_api.plane.crashing_reconciler(FaultAtMoment(dies_at))
    with suppress(Crash):
        canary_api.plane.tick(4)
    canary_api.plane.clock.advance(2)
    canary_api.plane.reconciler = Reconciler(canary_api.plane.context)
    canary_api.plane.tick(4)
    pointer = canary_api.pointer()
    assert pointer.canary is None
    assert (pointer.version, pointer.generation) == ((2, 4) if promotes else (3, 3))
    kinds = [kind for kind, _, _ in canary_api.events()]
    ended = "canary.promoted" if promotes else "canary.aborted"
    assert kinds == ["canary.started", ended]


def test_observations_are_removed_an_hour_after_their_canary(canary_api: CanaryApi) -> None:
    first = canary_api.put(2, share=0.1)
    canary_api.pointer()
    observe(canary_api.plane.store, answered=1)
    second = canary_api.put(2, share=0.2)
    canary_api.pointer()
    observe(canary_api.plane.store, answered=2)
    folders = [layout.observations("scenes", each["revision"]) for each in (first, second)]
    canary_api.plane.clock.advance(3500)
    sweep(canary_api.plane)
    assert [len(keys(canary_api.plane, folder)) for folder in folders] == [1, 1]
    canary_api.plane.clock.advance(200)
    sweep(canary_api.plane)
    assert [len(keys(canary_api.plane, folder)) for folder in folders] == [0, 1]
    canary_api.end()
    canary_api.plane.clock.advance(3700)
    sweep(canary_api.plane)
    assert [len(keys(canary_api.plane, folder)) for folder in folders] == [0, 0]
