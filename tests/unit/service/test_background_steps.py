"""Judging and storing run in the background: a large candidate does not delay other models."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from datetime import timedelta

import pytest

from service.jobs.reconciler import Reconciler
from service.jobs.workqueue import BackgroundSteps
from service.states import JobState
from tests.fakes.clock import ScriptedClock
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train


class Held(Executor):
    """Keeps what it was given until the test has it done."""

    def __init__(self) -> None:
        self._kept: list[tuple[Future[None], Callable[[], None]]] = []

    def submit(self, step: Callable[[], None]) -> Future[None]:  # type: ignore[override]
        self._kept.append((Future(), step))
        return self._kept[-1][0]

    def __len__(self) -> int:
        return len(self._kept)

    def go(self) -> None:
        """The oldest one."""
        future, step = self._kept.pop(0)
        try:
            future.set_result(step())
        except Exception as error:  # noqa: BLE001 (an executor passes on every exception)
            future.set_exception(error)


@pytest.fixture
def held(plane: ControlPlane) -> Held:
    """Of a control plane whose background steps take as long as the test says."""
    held = Held()
    plane.reconciler = Reconciler(replace(plane.context, threads=held))
    return held


def _move_to_gating(plane: ControlPlane, model: str) -> str:
    job = plane.post_dataset("one", model)
    train(plane.store, job, plane.tick_to(job, JobState.RUNNING).attempt)
    plane.tick_to(job, JobState.GATING)
    return job


def test_other_models_continue_while_a_candidate_is_judged(plane: ControlPlane, held: Held) -> None:
    plane.create_model("large")
    large = _move_to_gating(plane, "large")
    plane.tick()
    assert len(held) == 1
    small = plane.post_dataset("two")
    plane.tick_to(small, JobState.RUNNING)
    plane.tick(5)
    assert len(held) == 1
    lease = plane.model("large").lease_until
    assert lease is not None
    assert lease > plane.clock() - timedelta(seconds=1)
    assert plane.job(large).state == JobState.GATING
    held.go()
    assert plane.job(large).state == JobState.PUBLISHED


def test_a_roll_back_reaches_the_replicas_while_a_version_is_stored(plane: ControlPlane) -> None:
    for name in ("one", "two"):
        plane.run_to_end(plane.post_dataset(name))
    held = Held()
    plane.reconciler = Reconciler(replace(plane.context, threads=held))
    job = plane.post_dataset("three")
    train(plane.store, job, plane.tick_to(job, JobState.RUNNING).attempt)
    plane.tick_to(job, JobState.GATING)
    plane.tick()
    held.go()
    plane.tick()
    assert (len(held), plane.job(job).state) == (1, JobState.PUBLISHED)
    plane.client.put("/v1/models/scenes/live", json={"version": 1})
    plane.tick()
    assert plane.answering() == (3, 1)
    held.go()
    plane.tick(2)
    assert plane.answering() == (4, 3)


def test_a_step_that_failed_is_tried_again(plane: ControlPlane, held: Held) -> None:
    job = _move_to_gating(plane, "scenes")
    plane.tick()
    plane.store.broken = "candidate"
    held.go()
    plane.tick()
    assert "waiting: " in (plane.job(job).message or "")
    plane.store.broken = None
    plane.clock.advance(60)
    plane.tick()
    held.go()
    assert plane.job(job).state == JobState.PUBLISHED


def test_a_failing_step_is_tried_less_and_less_often(plane: ControlPlane, held: Held) -> None:
    _move_to_gating(plane, "scenes")
    plane.store.broken = "candidate"
    tries = 0
    for _ in range(40):
        plane.tick()
        while len(held):
            held.go()
            tries += 1
    assert 3 <= tries <= 8


def test_candidates_that_end_without_a_version_keep_no_place(
    plane: ControlPlane, held: Held
) -> None:
    """A model without unfinished jobs is not reconciled."""
    names = [*"abcde"]
    jobs = []
    for name in names:
        plane.create_model(name)
        plane.client.put(
            f"/v1/models/{name}/policy", json={"min_gain": 0.5 if name != "e" else None}
        )
        jobs.append(_move_to_gating(plane, name))
    plane.tick()
    assert len(held) == 4
    assert "other candidates" in (plane.job(jobs[-1]).message or "")
    for _ in range(4):
        held.go()
    assert {plane.job(job).state for job in jobs[:-1]} == {JobState.REJECTED}
    plane.tick()
    assert len(held) == 1
    held.go()
    assert plane.job(jobs[-1]).state == JobState.PUBLISHED


def test_a_step_that_hangs_has_the_process_ended(plane: ControlPlane, held: Held) -> None:
    _move_to_gating(plane, "scenes")
    plane.tick()
    plane.app.state.loops = [plane.reconciler]
    plane.clock.advance(1700)
    plane.tick()
    assert plane.client.get("/healthz").status_code == 200
    plane.clock.advance(100)
    plane.tick()
    answer = plane.client.get("/healthz")
    assert answer.status_code == 503
    assert "'scenes' has not ended for" in answer.json()["checks"]["reconciler"]
    held.go()
    plane.tick()
    assert plane.client.get("/healthz").status_code == 200


def _nothing() -> None:
    pass


def test_steps_get_their_places_in_the_order_in_which_they_were_begun() -> None:
    held, woken = Held(), list[str]()
    steps = BackgroundSteps(held, woken.append, ScriptedClock())
    assert [steps.begin(model, _nothing) for model in "fedcba"] == [True] * 4 + [False] * 2
    assert all(steps.is_busy(model) for model in "abcdef")
    held.go()
    assert woken == ["f"]
    assert not steps.begin("g", _nothing)
    assert [*steps.ended()] == ["f"]
    assert (steps.is_busy("f"), len(held)) == (False, 4)
    for _ in range(4):
        held.go()
    assert [*steps.ended()] == [*"edcb"]
    held.go()
    held.go()
    assert [*steps.ended()] == [*"ag"]
    assert steps.longest() is None
