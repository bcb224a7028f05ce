"""live.json: all that replicas are told of a model, and that it goes with the model."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from service.jobs.reconciler import Reconciler
from service.registry import live_pointer
from tests.fakes.control_plane import ControlPlane
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.mortal import Death, Lifeline
from tests.fakes.replica_words import observe
from tests.unit.service.canary.conftest import Trials
from tests.unit.service.maintenance.test_sweeping import keys, sweep
from workers.storage import layout
from workers.storage.object_store import ObjectStore
from workers.storage.versions import read_live, write_live


def _delete(plane: ControlPlane) -> None:
    assert plane.client.request("DELETE", "/v1/models/scenes").status_code == 204


def test_live_json_has_the_owner_of_the_model(trials: Trials) -> None:
    assert trials.pointer().owner == trials.plane.model().owner == "default"


def test_a_retired_version_reaches_the_replicas(trials: Trials) -> None:
    before = trials.pointer()
    for number in (2, 1, 1):
        path = f"/v1/models/scenes/versions/{number}"
        assert trials.plane.client.request("DELETE", path).status_code == 204
    after = trials.pointer()
    assert (after.retired, after.generation) == ((1, 2), before.generation)
    assert after.revision == before.revision + 2


def test_a_deleted_model_has_no_pointer_after_one_round(trials: Trials) -> None:
    trials.put(2, share=0.1)
    trials.pointer()
    _delete(trials.plane)
    trials.plane.tick()
    assert read_live(trials.plane.store, "scenes") is None
    assert trials.plane.model().is_mirrored


def test_a_pointer_that_cannot_be_removed_now_is_removed_later(trials: Trials) -> None:
    trials.plane.store.broken = "live.json"
    _delete(trials.plane)
    trials.plane.tick(2)
    trials.plane.store.broken = None
    assert read_live(trials.plane.store, "scenes") is not None
    trials.plane.clock.advance(30)
    trials.plane.tick(2)
    assert read_live(trials.plane.store, "scenes") is None


class LateStore(FlakyStore):
    """The world goes on between a look at the database and the write that follows from it."""

    def __init__(self, store: ObjectStore, meanwhile: Callable[[], None]) -> None:
        super().__init__(store)
        self._meanwhile = meanwhile

    def put(self, key: str, data: bytes) -> None:
        self._meanwhile()
        super().put(key, data)


def test_a_mirror_that_comes_late_does_not_bring_a_deleted_model_back(trials: Trials) -> None:
    plane = trials.plane
    trials.put(2, share=0.1)

    def meanwhile() -> None:
        _delete(plane)
        plane.tick()
        assert read_live(plane.store, "scenes") is None

    live_pointer.mirror(replace(plane.context, store=LateStore(plane.store, meanwhile)), "scenes")
    assert read_live(plane.store, "scenes") is not None
    plane.tick()
    assert read_live(plane.store, "scenes") is None


def test_a_late_write_before_a_crash_is_repaired_at_the_next_start(trials: Trials) -> None:
    plane = trials.plane
    late = trials.pointer()
    _delete(plane)
    plane.tick()
    write_live(plane.store, "scenes", late)
    successor = ControlPlane(plane.folder, plane.launcher, plane.clock)
    successor.tick(2)
    assert read_live(plane.store, "scenes") is None
    successor.close()


@pytest.mark.parametrize("dies_at", range(1, 16))
def test_a_death_at_any_moment_keeps_no_pointer_of_a_deleted_model(
    trials: Trials, dies_at: int
) -> None:
    _delete(trials.plane)
    lifeline = Lifeline(dies_at)
    with suppress(Death):
        for _ in range(3):
            trials.plane.mortal_reconciler(lifeline).tick()
            trials.plane.clock.advance(1)
    trials.plane.clock.advance(2)
    Reconciler(trials.plane.context).tick()
    assert read_live(trials.plane.store, "scenes") is None
    assert trials.plane.model().is_mirrored


@pytest.mark.parametrize("promotes", [True, False])
@pytest.mark.parametrize("dies_at", range(1, 28, 2))
def test_a_canary_ends_once_wherever_the_process_dies(
    trials: Trials, dies_at: int, promotes: bool
) -> None:
    trials.put(2, share=0.1, rule={"min_requests": 10, "promote_after": 10})
    trials.pointer()
    observe(trials.plane.store, **{"answered" if promotes else "failed": 10})
    trials.plane.reconciler = trials.plane.mortal_reconciler(Lifeline(dies_at))
    with suppress(Death):
        trials.plane.tick(4)
    trials.plane.clock.advance(2)
    trials.plane.reconciler = Reconciler(trials.plane.context)
    trials.plane.tick(4)
    pointer = trials.pointer()
    assert pointer.candidate is None
    assert (pointer.version, pointer.generation) == ((2, 4) if promotes else (3, 3))
    kinds = [kind for kind, _, _ in trials.told()]
    ended = "candidate.promoted" if promotes else "candidate.aborted"
    assert kinds == ["candidate.began", ended]


def test_observations_are_removed_an_hour_after_their_canary(trials: Trials) -> None:
    first = trials.put(2, share=0.1)
    trials.pointer()
    observe(trials.plane.store, answered=1)
    second = trials.put(2, share=0.2)
    trials.pointer()
    observe(trials.plane.store, answered=2)
    folders = [layout.observations("scenes", each["revision"]) for each in (first, second)]
    trials.plane.clock.advance(3500)
    sweep(trials.plane)
    assert [len(keys(trials.plane, folder)) for folder in folders] == [1, 1]
    trials.plane.clock.advance(200)
    sweep(trials.plane)
    assert [len(keys(trials.plane, folder)) for folder in folders] == [0, 1]
    trials.end()
    trials.plane.clock.advance(3700)
    sweep(trials.plane)
    assert [len(keys(trials.plane, folder)) for folder in folders] == [0, 0]
