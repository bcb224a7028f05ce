"""live.json: all that replicas read of a model; it is deleted with the model."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cmcl.contract.version import LivePointer
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import read_live, write_live
from service.jobs.reconciler import Reconciler
from service.registry import live_pointer
from tests.fakes.control_plane import ControlPlane
from tests.fakes.crashes import Crash, FaultAtMoment
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.rounds import run_round


@pytest.fixture(scope="module")
def three_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published once: copying is faster than publishing."""
    folder = tmp_path_factory.mktemp("three-versions")
    made = ControlPlane(folder)
    made.create_model()
    for name in ("one", "two", "three"):
        made.run_to_end(made.post_dataset(name))
    made.close()
    return folder


@pytest.fixture
def plane(three_versions: Path, tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane with one model, `scenes`, whose third version is live."""
    shutil.copytree(three_versions, tmp_path, dirs_exist_ok=True)
    plane = ControlPlane(tmp_path)
    plane.clock.advance(3600)
    yield plane
    plane.close()


def _pointer(plane: ControlPlane) -> LivePointer:
    """live.json, after a round of the reconciler."""
    plane.tick()
    found = read_live(plane.store, "scenes")
    assert found is not None
    return found


def _delete(plane: ControlPlane) -> None:
    assert plane.client.request("DELETE", "/v1/models/scenes").status_code == 204


def test_live_json_has_the_owner_of_the_model(plane: ControlPlane) -> None:
    assert _pointer(plane).owner == plane.model().owner == "default"


def test_a_retired_version_reaches_the_replicas(plane: ControlPlane) -> None:
    before = _pointer(plane)
    for number in (2, 1, 1):
        path = f"/v1/models/scenes/versions/{number}"
        assert plane.client.request("DELETE", path).status_code == 204
    after = _pointer(plane)
    assert (after.retired, after.generation) == ((1, 2), before.generation)
    assert after.revision == before.revision + 2


def test_a_deleted_model_has_no_pointer_after_one_round(plane: ControlPlane) -> None:
    _pointer(plane)
    _delete(plane)
    plane.tick()
    assert read_live(plane.store, "scenes") is None
    assert plane.model().is_pointer_written


def test_a_pointer_that_cannot_be_removed_now_is_removed_later(plane: ControlPlane) -> None:
    plane.store.broken = "live.json"
    _delete(plane)
    plane.tick(2)
    plane.store.broken = None
    assert read_live(plane.store, "scenes") is not None
    plane.clock.advance(30)
    plane.tick(2)
    assert read_live(plane.store, "scenes") is None


class LateStore(FlakyStore):
    """A store before whose writes the state changes, after the database was read."""

    def __init__(self, store: ObjectStore, during: Callable[[], None]) -> None:
        super().__init__(store)
        self._during = during

    def put(self, key: str, data: bytes) -> None:
        self._during()
        super().put(key, data)


def test_a_write_that_comes_late_does_not_bring_a_deleted_model_back(plane: ControlPlane) -> None:
    def during() -> None:
        _delete(plane)
        plane.tick()
        assert read_live(plane.store, "scenes") is None

    live_pointer.write(replace(plane.context, store=LateStore(plane.store, during)), "scenes")
    assert read_live(plane.store, "scenes") is not None
    plane.tick()
    assert read_live(plane.store, "scenes") is None


def test_a_late_write_before_a_crash_is_repaired_at_the_next_start(plane: ControlPlane) -> None:
    late = _pointer(plane)
    _delete(plane)
    plane.tick()
    write_live(plane.store, "scenes", late)
    successor = ControlPlane(plane.folder, plane.launcher, plane.clock)
    successor.tick(2)
    assert read_live(plane.store, "scenes") is None
    successor.close()


@pytest.mark.parametrize("dies_at", range(1, 16))
def test_a_death_at_any_moment_keeps_no_pointer_of_a_deleted_model(
    plane: ControlPlane, dies_at: int
) -> None:
    _delete(plane)
    lifeline = FaultAtMoment(dies_at)
    with suppress(Crash):
        for _ in range(3):
            run_round(plane.crashing_reconciler(lifeline))
            plane.clock.advance(1)
    plane.clock.advance(2)
    run_round(Reconciler(plane.context))
    assert read_live(plane.store, "scenes") is None
    assert plane.model().is_pointer_written
