"""The work queue, its workers, loops, and how instances share models."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest

from cmcl.contract.api.jobs import JobState
from service.core.clock import steady
from service.database.engine import Database
from service.database.queries import instances
from service.jobs.reconciler import Reconciler, Workers
from service.jobs.workqueue import Key, Work, WorkQueue
from tests.fakes.clock import ScriptedClock
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


SCENES, SOUNDS = Key("scenes", Work.JOBS), Key("sounds", Work.JOBS)


class Seconds:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _queue(seconds: Seconds | None = None, low_priority: int = 8, **limits: int) -> WorkQueue:
    limits_of_work = {Work(name): most for name, most in limits.items()}
    return WorkQueue(seconds or Seconds(), limits_of_work, low_priority)


class Processed:
    """Threads that process keys of a queue, and how often and how many at a time each key was processed."""

    def __init__(self, queue: WorkQueue, threads: int) -> None:
        self.queue = queue
        self.times, self.at_once = Counter[Key](), Counter[Key]()
        self._running = Counter[Key]()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while not self._is_over.is_set():
            key = self.queue.get(0.01)
            if key is not None:
                self._running[key] += 1
                self.at_once[key] = max(self.at_once[key], self._running[key])
                self.times[key] += 1
                self._running[key] -= 1
                self.queue.done(key)

    def finish(self) -> None:
        """Wait until nothing is due."""
        while self.queue.depth() or self.queue.longest_running() is not None:
            pass
        self._is_over.set()
        for thread in self._threads:
            thread.join()


def test_a_key_is_never_processed_twice_at_once() -> None:
    queue = WorkQueue(steady(ScriptedClock()), {}, 8)
    processed = Processed(queue, threads=4)
    keys = [Key(name, Work.JOBS) for name in "abc"]
    for _ in range(300):
        for key in keys:
            queue.add(key)
    processed.finish()
    assert processed.at_once == dict.fromkeys(keys, 1)
    assert all(1 <= processed.times[key] <= 300 for key in keys)


def test_a_key_that_is_added_while_it_is_processed_is_processed_again() -> None:
    queue = _queue()
    queue.add(SCENES)
    assert queue.get(0) == SCENES
    queue.add(SCENES)
    assert queue.get(0) is None
    queue.done(SCENES)
    assert queue.get(0) == SCENES
    queue.done(SCENES)
    assert queue.get(0) is None


def test_a_key_that_is_added_several_times_is_processed_once() -> None:
    queue = _queue()
    for _ in range(3):
        queue.add(SCENES)
    queue.add(SOUNDS)
    assert [queue.get(0), queue.get(0), queue.get(0)] == [SCENES, SOUNDS, None]


def test_of_two_times_the_earlier_one_counts() -> None:
    seconds = Seconds()
    queue = _queue(seconds)
    queue.add_after(SCENES, 10)
    queue.add_after(SCENES, 5)
    queue.add_after(SCENES, 30)
    seconds.now += 4
    assert (queue.get(0), queue.next_due()) == (None, 1.0)
    seconds.now += 1
    assert queue.get(0) == SCENES
    queue.done(SCENES)
    assert queue.next_due() is None or queue.get(0) is None


def test_a_failed_key_waits_longer_each_time_and_no_event_shortens_it() -> None:
    seconds = Seconds()
    queue, pauses = _queue(seconds), []
    queue.add(SCENES)
    for _ in range(10):
        while queue.get(0) is None:
            queue.add(SCENES)
            seconds.now += 0.1
        pauses.append(round(seconds.now, 1))
        queue.retry(SCENES)
        queue.done(SCENES)
    gaps = [after - before for before, after in itertools.pairwise(pauses)]
    assert gaps[:3] == pytest.approx([0.2, 0.4, 0.8], abs=0.11)
    assert gaps[-1] == pytest.approx(30, abs=0.11)
    seconds.now += 30
    assert queue.get(0) == SCENES
    queue.forget(SCENES)
    queue.add(SCENES)
    queue.done(SCENES)
    assert queue.get(0) == SCENES


def test_an_event_during_a_failure_does_not_shorten_the_pause() -> None:
    seconds = Seconds()
    queue = _queue(seconds)
    queue.add(SCENES)
    assert queue.get(0) == SCENES
    queue.add(SCENES)
    queue.retry(SCENES)
    queue.done(SCENES)
    assert queue.get(0) is None
    seconds.now += 0.2
    assert queue.get(0) == SCENES


def test_a_bounded_kind_of_work_leaves_workers_for_others() -> None:
    seconds = Seconds()
    queue = _queue(seconds, pointer=2)
    for name in "abc":
        queue.add(Key(name, Work.POINTER))
    seconds.now += 1
    queue.add(SCENES)
    taken = [queue.get(0) for _ in range(4)]
    assert taken == [Key("a", Work.POINTER), Key("b", Work.POINTER), SCENES, None]
    assert queue.is_full(Work.POINTER)
    queue.done(Key("a", Work.POINTER))
    assert queue.get(0) == Key("c", Work.POINTER)


def test_events_come_before_low_priority_keys() -> None:
    seconds = Seconds()
    queue = _queue(seconds)
    queue.add_with_low_priority(SOUNDS)
    seconds.now += 1
    queue.add(SCENES)
    assert [queue.get(0), queue.get(0)] == [SCENES, SOUNDS]


def test_an_event_raises_the_priority_of_its_key() -> None:
    """Whether the key is due already, or its worker has not looked since."""
    seconds = Seconds()
    queue = _queue(seconds)
    late, other = Key("late", Work.JOBS), Key("other", Work.JOBS)
    queue.add_with_low_priority(other)
    queue.add_with_low_priority(SCENES)
    queue.add_with_low_priority(late, 1)
    seconds.now += 2
    queue.add(late)
    queue.add(SCENES)
    queue.add_with_low_priority(SCENES)
    assert [queue.get(0) for _ in range(4)] == [late, SCENES, other, None]


def test_an_event_while_its_key_is_processed_has_normal_priority() -> None:
    seconds = Seconds()
    queue = _queue(seconds)
    queue.add(SCENES)
    assert queue.get(0) == SCENES
    queue.add_with_low_priority(SOUNDS)
    queue.add_with_low_priority(SCENES)
    seconds.now += 1
    queue.add(SCENES)
    queue.done(SCENES)
    assert [queue.get(0), queue.get(0)] == [SCENES, SOUNDS]


def test_a_normal_time_is_not_delayed_by_a_later_one_with_low_priority() -> None:
    seconds = Seconds()
    queue = _queue(seconds)
    queue.add_after(SCENES, 5)
    queue.add_with_low_priority(SCENES, 10)
    queue.add_with_low_priority(SOUNDS)
    seconds.now += 5
    assert [queue.get(0), queue.get(0)] == [SCENES, SOUNDS]


def test_low_priority_keys_leave_workers_for_events() -> None:
    queue = _queue(low_priority=2)
    keys = [Key(name, Work.JOBS) for name in "abc"]
    for key in keys:
        queue.add_with_low_priority(key)
    assert [queue.get(0) for _ in keys] == [*keys[:2], None]
    queue.add(SCENES)
    assert [queue.get(0), queue.get(0)] == [SCENES, None]
    queue.done(keys[1])
    assert queue.get(0) == keys[2]


def test_an_earlier_time_with_low_priority_keeps_the_normal_time() -> None:
    seconds = Seconds()
    queue = _queue(seconds, low_priority=1)
    other = Key("other", Work.JOBS)
    for key in (other, SOUNDS):
        queue.add_with_low_priority(key)
    queue.add_after(SCENES, 3)
    queue.add_with_low_priority(SCENES)
    assert [queue.get(0), queue.get(0)] == [other, None]
    seconds.now += 3
    assert [queue.get(0), queue.get(0)] == [SCENES, None]


def test_a_key_that_is_due_with_both_priorities_is_processed_once() -> None:
    seconds = Seconds()
    queue = _queue(seconds)
    queue.add_after(SCENES, 3)
    queue.add_with_low_priority(SCENES)
    assert queue.get(0) == SCENES
    queue.done(SCENES)
    seconds.now += 3
    assert queue.get(0) is None


def test_busy_workers_take_a_low_priority_key_long_before_it_makes_the_process_not_ready() -> None:
    seconds, taken = Seconds(), []
    queue = _queue(seconds)
    queue.add_with_low_priority(SOUNDS)
    while SOUNDS not in taken:
        # One worker, and an event for each key that it takes.
        seconds.now += 1
        queue.add(SCENES)
        assert Workers(queue, queue.done, 1).problem() is None
        key = queue.get(0)
        assert key is not None
        queue.done(key)
        taken.append(key)
    assert 5 < len(taken) < 20


def test_depth_and_age_show_what_waits() -> None:
    seconds = Seconds()
    queue = _queue(seconds)
    old = Key("old", Work.POINTER)
    queue.add_with_low_priority(old)
    seconds.now += 60
    queue.add(SCENES)
    queue.add_after(SOUNDS, 1)
    seconds.now += 3
    assert queue.depth() == 3
    assert queue.oldest_seconds(Work.POINTER) == 3
    assert queue.oldest_seconds() == 63
    assert queue.get(0) == old
    seconds.now += 5
    assert queue.longest_running() == (old, 5)


def test_a_clock_that_goes_back_delays_nothing() -> None:
    clock = ScriptedClock()
    seconds = steady(clock)
    before = seconds()
    clock.now -= timedelta(hours=1)
    clock.advance(2)
    assert 0 <= seconds() - before <= 2
    clock.advance(3)
    assert 3 <= seconds() - before <= 5


def test_a_worker_that_waits_is_woken_by_a_key() -> None:
    queue, found = _queue(), []
    thread = threading.Thread(target=lambda: found.append(queue.get(60)))
    thread.start()
    queue.add(SCENES)
    thread.join(30)
    assert found == [SCENES]
