"""Regression tests of bugs that the fault scenarios, or reading the code, have found: two replicas that interleave.

The first one stops before a call, in which the world changes and the other one runs, and then continues.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from cmcl.contract.api.jobs import JobState
from cmcl.storage import layout
from service.core.errors import DatabaseUnavailable
from service.database.tables import models
from service.jobs.reconciler import Reconciler
from tests.fakes.crashes import Contact, Crash, CrashingDatabase, CrashingLauncher, CrashingStore
from tests.fakes.rounds import run_round
from tests.faults.invariants import InvariantChecker
from tests.faults.scenarios import is_quiet
from tests.faults.world import BAD, Template, World, database_of

_MOST_ROUNDS = 200
Moment = Callable[[Contact], bool]


class Replica:
    """One process of the service. It has rounds, and is its own FaultInjector.

    `fails`, `loses_reply`, `dies`: whether a call is not done, is done without a reply, or is the last one.
    """

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._meanwhile: Callable[[], None] | None = None
        self.fails: Moment = lambda _: False
        self.loses_reply: Moment = lambda _: False
        self.dies: Moment = lambda _: False
        self._stops: Moment = lambda _: False
        context = world.context(database_of(name, world.database_url))
        mortal = replace(
            context,
            database=CrashingDatabase(context.database, self),
            store=CrashingStore(context.store, self),
            launcher=CrashingLauncher(context.launcher, self),
        )
        self._reconciler = Reconciler(mortal)

    def round(self) -> None:
        """Run a round. An outage of the database ends it, as in the reconciler's own loop."""
        with suppress(DatabaseUnavailable):
            run_round(self._reconciler)

    def stop_before(self, moment: Moment, meanwhile: Callable[[], None]) -> None:
        """Run until it is about to make that call, let others act, and finish the round."""
        self._stops, self._meanwhile = moment, meanwhile
        for _ in range(_MOST_ROUNDS):
            self.round()
            if self._meanwhile is None:
                return
            # So that what was asked for is looked at again.
            self._world.clock.advance(0.25)
        raise AssertionError("it never came to that call")

    def leads(self) -> bool:
        """Whether it holds the lease of a model."""
        query = select(models.c.name).where(models.c.lease_owner == self._reconciler.instance)
        with self._world.database.read() as connection:
            return connection.execute(query).first() is not None

    def before(self, contact: Contact) -> None:
        meanwhile = self._meanwhile
        if meanwhile is not None and self._stops(contact):
            self._meanwhile = None
            meanwhile()
        elif self.fails(contact):
            raise contact.error(f"{contact.about}: no response (on purpose)")

    def inside(self, contact: Contact) -> None:
        """A fault here would make no visible difference."""

    def after(self, contact: Contact) -> None:
        if self.dies(contact):
            raise Crash(f"after {contact.method} (on purpose)")
        if self.loses_reply(contact):
            raise contact.error(f"{contact.about}: the reply was lost (on purpose)")


def call(method: str, about: str = "") -> Moment:
    """That call, with these words in what it is about."""
    return lambda contact: contact.method == method and about in contact.about


@pytest.fixture
def world(template: Template, stage: Path) -> Iterator[World]:
    world = World(template, stage)
    yield world
    for name in ("a", "b"):
        # The next world has another file under the same address.
        database_of(name, world.database_url).close()
    world.close()


@pytest.fixture
def first(world: World) -> Replica:
    return Replica(world, "a")


@pytest.fixture
def second(world: World) -> Replica:
    return Replica(world, "b")


def run(world: World, replica: Replica, rounds: int = 14) -> None:
    """Run some rounds of that replica without faults."""
    for _ in range(rounds):
        replica.round()
        world.serve()
        world.clock.advance(1)


def converge(world: World, *replicas: Replica) -> None:
    """Check that in a healthy world all jobs end as they must."""
    checker = InvariantChecker(world)
    for _ in range(_MOST_ROUNDS):
        for replica in replicas:
            replica.round()
        world.serve()
        world.clock.advance(1)
        if is_quiet(world):
            break
    for replica in replicas:
        replica.round()
    checker.check_at_the_end()


def test_an_attempt_that_is_handed_over_too_late_is_stopped(
    world: World, first: Replica, second: Replica
) -> None:
    """A is about to submit; in between the job is cancelled and B ends it."""
    job = world.post("good-0")
    assert job is not None

    def meanwhile() -> None:
        world.clock.advance(6)
        assert world.cancel(job)
        run(world, second, 3)
        assert world.job(job).state == JobState.CANCELLED

    first.stop_before(call("submit", job), meanwhile)
    assert world.cluster.ever == [f"{job}-a1"]
    assert world.cluster.alive == []


def test_two_that_submit_the_same_attempt_do_not_stop_it(
    world: World, first: Replica, second: Replica
) -> None:
    job = world.post("good-0")
    assert job is not None

    def meanwhile() -> None:
        world.clock.advance(6)
        second.round()
        assert world.job(job).state == JobState.RUNNING

    first.stop_before(call("submit", job), meanwhile)
    assert world.cluster.alive == [f"{job}-a1"]


def test_a_refusal_after_a_lost_reply_leaves_nothing_running(world: World, first: Replica) -> None:
    """The cluster accepted the attempt, the reply was lost, and then its head lost the record."""
    job = world.post("good-0")
    assert job is not None
    first.loses_reply = call("submit")
    while not world.cluster.ever:
        first.round()
        world.clock.advance(0.25)
    first.loses_reply = lambda _: False
    world.cluster.refuses = True
    world.cluster.restart_head()
    for _ in range(60):
        first.round()
        world.clock.advance(1)
    assert world.job(job).state == JobState.FAILED
    assert world.cluster.stopped == [f"{job}-a1"]


def test_a_repaired_dataset_keeps_its_files(world: World, first: Replica, second: Replica) -> None:
    """A has just found its rows invalid; the user repairs them and retries, and B learns them."""
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
    run(world, second)
    Path(path).write_bytes(bad_rows)
    first.round()
    found = world.job(job)
    assert found.state == JobState.PUBLISHED
    assert world.store.read(layout.dataset_manifest(str(found.dataset)))


def test_a_job_that_was_looked_at_long_ago_begins_alone(
    world: World, first: Replica, second: Replica
) -> None:
    """A is about to start the second job; in between the first one is retried, and B starts it."""
    retried = _one_that_failed(world, second)
    waiting = world.post("good-1")
    assert waiting is not None
    second.dies = lambda _: world.job(waiting).state == JobState.PREPARED
    with pytest.raises(Crash):
        run(world, second, _MOST_ROUNDS)
    world.clock.advance(6)

    def meanwhile() -> None:
        world.clock.advance(6)
        assert world.retry(retried)
        restarted = Replica(world, "b")
        while world.job(retried).state != JobState.RUNNING:
            restarted.round()
            world.clock.advance(1)

    # It has leased the model and looked at the job that waits, and is about to begin it.
    first.stop_before(lambda contact: contact.method == "write" and first.leads(), meanwhile)
    assert world.job(waiting).state == JobState.PREPARED
    converge(world, first, Replica(world, "b"))


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
