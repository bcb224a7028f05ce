"""The reconciler on its work queue: events wake a model, a resync finds what was missed, large files delay no others."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

from cmcl.contract.api.jobs import JobState
from service.database.engine import Database
from service.database.queries import instances
from service.jobs.reconciler import Reconciler, Workers
from service.jobs.workqueue import Key, Work
from tests.fakes.control_plane import ControlPlane
from tests.fakes.rounds import take
from tests.fakes.trainer import train


@contextmanager
def _working(plane: ControlPlane) -> Iterator[Workers]:
    """Run the loops of the reconciler in threads until the block ends."""
    stop, reconciler = threading.Event(), plane.reconciler
    workers = Workers(reconciler.queue, reconciler.process, 3)
    threads = [
        threading.Thread(target=loop.run, args=[stop], daemon=True)
        for loop in (reconciler, workers)
    ]
    for thread in threads:
        thread.start()
    try:
        yield workers
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def _wait_for(plane: ControlPlane, job: str, state: JobState) -> None:
    deadline = time.monotonic() + 60
    while plane.job(job).state != state:
        assert time.monotonic() < deadline, plane.job(job)
        time.sleep(0.01)


def _wait_until_idle(plane: ControlPlane, model: str) -> None:
    queue, deadline = plane.reconciler.queue, time.monotonic() + 60
    while queue.depth() or queue.is_busy(model):
        assert time.monotonic() < deadline, queue.depth()
        time.sleep(0.01)


def test_a_posted_dataset_is_taken_up_at_once(plane: ControlPlane) -> None:
    with _working(plane):
        # The clock does not advance, so only the event makes it due.
        time.sleep(0.1)
        _wait_for(plane, plane.post_dataset(), JobState.PREPARING)


def test_an_event_that_was_missed_is_found_by_the_resync(plane: ControlPlane) -> None:
    # The model has a lease already: a replica wakes a model that it claims.
    plane.tick_to(plane.post_dataset("one"), JobState.PREPARING)
    with _working(plane):
        _wait_until_idle(plane, "scenes")
        # As another process would accept it, whose notification is lost.
        database = plane.context.database
        others = Database(database.engine, database.writer_lock)
        plane.app.state.context = replace(plane.context, database=others)
        job = plane.post_dataset("two")
        time.sleep(0.2)
        assert plane.job(job).state == JobState.QUEUED
        plane.clock.advance(plane.context.tuning.resync_seconds)
        _wait_for(plane, job, JobState.PREPARING)


def test_a_resync_is_spread_over_its_interval(plane: ControlPlane) -> None:
    """Thousands of models at once would delay the events of others."""
    names = [f"m{number}" for number in range(10)]
    for name in names:
        plane.create_model(name)
        plane.tick_to(plane.post_dataset("one", name), JobState.PREPARING)
    queue, interval = plane.reconciler.queue, plane.context.tuning.resync_seconds
    plane.clock.advance(interval)
    plane.reconciler.step(threading.Event())
    while (key := queue.get(0)) is not None:
        queue.done(key)
    plane.reconciler.resync(interval)
    seen, found = set[str](), list[int]()
    for _ in range(10):
        while (key := queue.get(0)) is not None:
            seen.add(key.model)
            queue.done(key)
        found.append(len(seen))
        plane.clock.advance(interval / 10)
    assert found == list(range(1, 11))


def test_an_event_of_one_model_processes_no_other(plane: ControlPlane) -> None:
    plane.create_model("sounds")
    plane.tick()
    plane.post_dataset()
    plane.post_dataset("two", "sounds")
    queue = plane.reconciler.queue
    seen = set()
    while (key := queue.get(0)) is not None:
        seen.add(key)
        queue.done(key)
    assert seen == {
        Key(model, work) for model in ("scenes", "sounds") for work in (Work.JOBS, Work.DATASETS)
    }
    plane.client.put("/v1/models/sounds/gate", json={"min_gain": 0.5})
    assert queue.get(0) == Key("sounds", Work.JOBS)
    assert queue.get(0) == Key("sounds", Work.DATASETS)
    assert queue.get(0) is None


def _move_to_gating(plane: ControlPlane, model: str) -> str:
    job = plane.post_dataset("one", model)
    train(plane.store, job, plane.tick_to(job, JobState.RUNNING).attempt)
    plane.tick_to(job, JobState.GATING)
    return job


def _take(plane: ControlPlane, model: str) -> Key:
    """Begin to judge: the key as a worker has it that has not ended."""
    return take(plane.reconciler.queue, Key(model, Work.JOBS))


def test_other_models_continue_while_a_candidate_is_judged(plane: ControlPlane) -> None:
    plane.create_model("large")
    large = _move_to_gating(plane, "large")
    key = _take(plane, "large")
    small = plane.post_dataset("two")
    plane.tick_to(small, JobState.RUNNING)
    plane.tick(5)
    assert plane.model("large").lease_owner == plane.reconciler.instance
    with plane.context.database.read() as connection:
        last_round = plane.clock() - timedelta(seconds=1)
        assert plane.reconciler.instance in instances.alive(connection, last_round)
    assert plane.job(large).state == JobState.GATING
    plane.reconciler.process(key)
    assert plane.job(large).state == JobState.PUBLISHED


def test_judging_that_failed_is_tried_again_and_less_and_less_often(plane: ControlPlane) -> None:
    job = _move_to_gating(plane, "scenes")
    plane.store.broken = "candidate"
    plane.tick(40)
    tries = plane.context.metrics.registry.get_sample_value(
        "cmcl_service_reconcile_errors_total", {"error": "StorageUnavailable"}
    )
    assert tries is not None
    assert 4 <= tries <= 9
    assert "waiting: " in (plane.job(job).message or "")
    plane.store.broken = None
    plane.clock.advance(60)
    plane.tick()
    assert plane.job(job).state == JobState.PUBLISHED


def test_work_that_hangs_has_the_process_ended(plane: ControlPlane) -> None:
    _move_to_gating(plane, "scenes")
    key = _take(plane, "scenes")
    workers = Workers(plane.reconciler.queue, plane.reconciler.process, 1)
    plane.app.state.loops = [plane.reconciler, workers]
    plane.clock.advance(1700)
    assert plane.client.get("/healthz").status_code == 200
    plane.clock.advance(100)
    answer = plane.client.get("/healthz")
    assert answer.status_code == 503
    assert "jobs of model 'scenes' has not ended for" in answer.json()["checks"]["workqueue"]
    plane.reconciler.process(key)
    assert plane.client.get("/healthz").status_code == 200


def test_a_model_that_waits_for_a_worker_makes_the_process_not_ready(plane: ControlPlane) -> None:
    workers = Workers(plane.reconciler.queue, plane.reconciler.process, 1)
    plane.app.state.loops = [workers]
    plane.post_dataset()
    assert plane.client.get("/readyz").status_code == 200
    plane.clock.advance(61)
    response = plane.client.get("/readyz")
    assert response.status_code == 503
    assert "waited for a worker for 61 s" in response.json()["checks"]["workqueue"]


def test_a_model_whose_lease_is_free_is_claimed_by_its_event(plane: ControlPlane) -> None:
    """No round of leases is needed before the first step."""
    job = plane.post_dataset()
    other = Reconciler(plane.context)
    other.process(take(other.queue, Key("scenes", Work.DATASETS)))
    assert plane.model().lease_owner == other.instance
    assert plane.job(job).state == JobState.PREPARING
    late = Reconciler(plane.context)
    late.process(take(late.queue, Key("scenes", Work.DATASETS)))
    assert plane.model().lease_owner == other.instance
