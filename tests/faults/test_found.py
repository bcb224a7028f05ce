"""Regression tests of bugs that the fault scenarios, or reading the code, have found."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.storage import layout
from cmcl.storage.versions import read_live
from tests.faults.convergence import converge, serve
from tests.faults.invariants import InvariantChecker
from tests.faults.replica import Order, Replica
from tests.faults.world import BAD, Template, World


@pytest.fixture
def world(template: Template, stage: Path) -> Iterator[World]:
    world = World(template, stage)
    yield world
    world.close()


@pytest.fixture
def replicas(world: World) -> Iterator[list[Replica]]:
    replicas = [Replica(world, name, 0, Counter()) for name in ("a", "b")]
    yield replicas
    for replica in replicas:
        replica.end()


def tell(world: World, replica: Replica, rounds: int = 14) -> None:
    """Run some rounds of that replica without faults."""
    for _ in range(rounds):
        replica.round()
        serve(world)
        world.clock.advance(1)


def stand_before(replica: Replica, method: str, about: str) -> None:
    """Run the replica until it is about to make that call."""
    for _ in range(200):
        if replica.contact.method == method and about in replica.contact.about:
            return
        if replica.contact.method == "round":
            # So that what was asked for is looked at again.
            replica._world.clock.advance(0.25)
        replica.go()
    raise AssertionError(f"{replica.name} never came to {method} {about}")


def test_an_old_pointer_that_was_written_late_is_repaired(
    world: World, replicas: list[Replica]
) -> None:
    """A writes an old live.json over B's newer one, and cannot record it in the database."""
    first, second = replicas
    world.post("good-0")
    world.post("good-1")
    tell(world, first, 24)
    assert world.promote(1)
    stand_before(first, "put", "live.json")
    world.clock.advance(6)
    assert world.promote(2)
    tell(world, second)
    live = read_live(world.store, "scenes")
    assert live is not None
    assert live.generation == 4
    first.go()
    first.go(Order.FAIL)
    converge(world, replicas, InvariantChecker(world))


def test_an_attempt_that_is_handed_over_too_late_is_stopped(
    world: World, replicas: list[Replica]
) -> None:
    """A is about to submit; in between the job is cancelled and B ends it."""
    first, second = replicas
    job = world.post("good-0")
    assert job is not None
    stand_before(first, "submit", job)
    world.clock.advance(6)
    assert world.cancel(job)
    tell(world, second, 3)
    assert world.job(job).state == JobState.CANCELLED
    first.round()
    assert world.cluster.ever == [f"{job}-a1"]
    assert world.cluster.alive == []


def test_two_that_submit_the_same_attempt_do_not_stop_it(
    world: World, replicas: list[Replica]
) -> None:
    first, second = replicas
    job = world.post("good-0")
    assert job is not None
    stand_before(first, "submit", job)
    world.clock.advance(6)
    second.round()
    assert world.job(job).state == JobState.RUNNING
    first.round()
    assert world.cluster.alive == [f"{job}-a1"]


def test_a_refusal_after_a_lost_reply_leaves_nothing_running(
    world: World, replicas: list[Replica]
) -> None:
    """The cluster accepted the attempt, the reply was lost, and then its head lost the record."""
    replica, _ = replicas
    job = world.post("good-0")
    assert job is not None
    stand_before(replica, "submit", job)
    replica.go(Order.LOSE)
    world.cluster.refuses = True
    world.cluster.restart_head()
    for _ in range(60):
        replica.round()
        world.clock.advance(1)
    assert world.job(job).state == JobState.FAILED
    assert world.cluster.stopped == [f"{job}-a1"]


def test_a_repaired_dataset_keeps_its_files(world: World, replicas: list[Replica]) -> None:
    """A has just found its rows invalid; the user repairs them and retries, and B learns them."""
    first, second = replicas
    job = world.post(BAD)
    assert job is not None
    while world.job(job).state != JobState.FAILED:
        first.round()
        world.clock.advance(1)
    path = world.template.shards[BAD]["uri"].removeprefix("file://")
    bad_rows = Path(path).read_bytes()
    Path(path).write_bytes(Path(path.replace(BAD, "good-0")).read_bytes())
    world.clock.advance(6)
    assert world.retry(job)
    world.bad_jobs.clear()
    tell(world, second)
    Path(path).write_bytes(bad_rows)
    first.round()
    found = world.job(job)
    assert found.state == JobState.PUBLISHED
    assert world.store.read(layout.dataset_manifest(str(found.dataset)))


def test_a_job_that_was_looked_at_long_ago_begins_alone(
    world: World, replicas: list[Replica]
) -> None:
    """A is about to start the second job; in between the first one is retried, and B starts it."""
    first, second = replicas
    retried, waiting = _one_that_failed(world, second), world.post("good-1")
    assert waiting is not None
    while world.job(waiting).state != JobState.PREPARED:
        if second.contact.method == "round":
            world.clock.advance(1)
        second.go()
    second.kill()
    world.clock.advance(6)
    _stand_before_its_move(first)
    world.clock.advance(6)
    assert world.retry(retried)
    second.restart()
    while world.job(retried).state != JobState.RUNNING:
        second.round()
        world.clock.advance(1)
    first.round()
    assert world.job(waiting).state == JobState.PREPARED
    converge(world, replicas, InvariantChecker(world))


def _one_that_failed(world: World, replica: Replica) -> str:
    job = world.post("good-0")
    assert job is not None
    while not world.cluster.alive:
        replica.round()
        world.clock.advance(1)
    world.give_up(f"{job}-a1")
    while world.job(job).state != JobState.FAILED:
        replica.round()
        world.clock.advance(1)
    return job


def _stand_before_its_move(replica: Replica) -> None:
    """It has leased the model and looked at the job that waits, and is about to begin it."""
    while not (replica.contact.method == "write" and replica.leads):
        replica.go()
