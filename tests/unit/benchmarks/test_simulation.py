"""Virtual time, and the simulation of the control plane in it at a tiny size."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from benchmarks.simulation.cluster import Durations
from benchmarks.simulation.page import exponent, predicted
from benchmarks.simulation.ports import Costs
from benchmarks.simulation.rows import Load
from benchmarks.simulation.simulation import Setup, simulate
from benchmarks.simulation.virtual_time import VirtualEvent, VirtualLock, VirtualTime

TINY = Setup(
    load=Load(models=18, running=6, queued=72, owners=3),
    seconds=16.0,
    warm_up=5.0,
    posted=2,
    durations=Durations(attempt=8.0, prepare=2.0),
)


def _deterministic(figures: dict[str, Any]) -> dict[str, Any]:
    measured = ("measured_cores_of_busiest", "wall_s")
    return {name: value for name, value in figures.items() if name not in measured}


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return simulate(TINY)


def test_candidates_become_live_while_calls_are_slow_and_fail(figures: dict[str, Any]) -> None:
    assert figures["candidates"] >= 4
    assert figures["not_live"] == 0
    assert 0.1 < figures["candidate_to_live_p50_s"] <= figures["candidate_to_live_p99_s"] < 10
    assert 0 < figures["progress_age_p99_s"] < 10
    assert figures["models_without_owner_most"] == 0
    assert figures["by_loop"]["worker"]["statements"] > 0


def test_an_owner_without_jobs_is_served_before_those_that_have_many(
    figures: dict[str, Any],
) -> None:
    assert figures["newcomer"]["begun"] == TINY.posted
    assert figures["owners"]["running_most"] - figures["owners"]["running_least"] <= 1


def test_the_same_seed_has_the_same_figures(figures: dict[str, Any]) -> None:
    assert _deterministic(simulate(TINY)) == _deterministic(figures)


def test_candidates_of_an_outage_of_the_store_are_live_after_it(figures: dict[str, Any]) -> None:
    out = Costs(outage=(TINY.warm_up + 3, TINY.warm_up + 11))
    found = simulate(replace(TINY, costs=out, seed=1))
    assert found["not_live"] == 0
    assert found["candidate_to_live_p99_s"] > 2 * figures["candidate_to_live_p99_s"]


def test_tasks_sleep_in_the_order_of_time_and_a_killed_one_ends() -> None:
    time, seen = VirtualTime(), list[tuple[str, float]]()

    def work(name: str, pause: float) -> None:
        while True:
            time.sleep(pause)
            seen.append((name, time.seconds()))

    slow = time.start("slow", lambda: work("slow", 3.0))
    time.start("quick", lambda: work("quick", 2.0))
    time.after(5.5, slow.kill)
    time.run(8.0)
    assert seen == [("quick", 2.0), ("slow", 3.0), ("quick", 4.0), ("quick", 6.0), ("quick", 8.0)]
    assert slow.has_ended
    assert time.seconds() == 8.0
    time.close()


def test_an_event_wakes_a_task_and_a_wait_ends_in_time() -> None:
    time, seen = VirtualTime(), list[tuple[bool, float]]()
    event = VirtualEvent(time)

    def work() -> None:
        for _ in range(2):
            seen.append((event.wait(4.0), time.seconds()))
            event.clear()

    time.start("waits", work)
    time.after(1.5, event.set)
    time.run(20.0)
    assert seen == [(True, 1.5), (False, 5.5)]
    time.close()


def test_a_lock_is_held_by_one_task_and_waited_for_in_virtual_time() -> None:
    time, seen = VirtualTime(), list[tuple[str, bool, float]]()
    lock = VirtualLock(time)

    def work(name: str, patience: float) -> None:
        is_held = lock.acquire(timeout=patience)
        seen.append((name, is_held, time.seconds()))
        if is_held:
            time.sleep(3.0)
            lock.release()

    for name, patience in (("first", 1.0), ("second", 5.0), ("third", 2.0)):
        time.start(name, partial(work, name, patience))
    time.run(20.0)
    assert seen == [("first", True, 0.0), ("third", False, 2.0), ("second", True, 3.0)]
    time.close()


def test_an_error_of_a_task_ends_the_run() -> None:
    time = VirtualTime()

    def work() -> None:
        time.sleep(1.0)
        raise ValueError("wrong")

    time.start("wrong", work)
    with pytest.raises(ValueError, match="wrong"):
        time.run(2.0)


def test_a_load_is_predicted_along_lines() -> None:
    def run(models: int, running: int, replicas: int) -> dict[str, Any]:
        rows = models * replicas + running**2
        sizes = {"models": models, "running": running, "replicas": replicas}
        return {**sizes, "by_loop": {"worker": {"rows_read": rows}}}

    found = {
        "base": run(1000, 0, 2),
        "models 100": run(100, 0, 2),
        "replicas 1": run(1000, 0, 1),
        "running 1": run(1000, 1, 2),
    }
    assert exponent(found, "models", "worker", "rows_read") == pytest.approx(1.0)
    assert exponent(found, "models", "worker", "statements") == 0.0
    found["base"]["running"] = 10
    assert predicted(found, 10.0, 4, "worker", "rows_read") == pytest.approx(40_000, rel=0.01)
