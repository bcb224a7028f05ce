"""Three replicas with several workers each, in virtual time: a dataset has one version under any interleaving.

Each call of a replica to database, store or launcher takes a random time, which now and then is longer than a lease; it
may fail, or lose its reply; and the replica may die before or after it, and be started again. Its loops and workers are
the product's, and their calls interleave. Users cancel jobs, and move the live version, at any moment.
CMCL_FAULT_EXAMPLES=100 runs more seeds.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from cmcl.contract.api.jobs import JobState
from service.context import Context
from service.core.states import CANCELLABLE
from service.database.engine import Seek
from service.database.queries import models, versions
from service.database.rows import Event
from service.launchers.port import LaunchState
from tests.fakes.clock import ScriptedClock
from tests.fakes.crashes import Contact, CrashingDatabase, CrashingLauncher, CrashingStore
from tests.fakes.memory_folder import memory_folder
from tests.faults.invariants import InvariantChecker
from tests.faults.scenarios import is_quiet
from tests.faults.virtual_replica import VirtualReplica
from tests.faults.virtual_time import Killed, VirtualTime
from tests.faults.world import (
    DEADLINES,
    GOOD_SHARDS,
    MODEL,
    Template,
    World,
    database_of,
    make_template,
)

# Half of a lease, and two: no clock decides alone who publishes.
_SKEWS = (DEADLINES["lease_seconds"] / 2, 2 * DEADLINES["lease_seconds"])
_SEEDS = range(int(os.environ.get("CMCL_FAULT_EXAMPLES", "3")))
_MODELS = (MODEL, "streets", "rooms")
_DATASETS = 4
# Until when there are faults, and until when all must have ended. Seconds.
_FAULTS_UNTIL, _ENDS_UNTIL = 90.0, 900.0
# Seconds of a call. The lease of a model lasts 6 s.
_PAUSES = (*[0.0] * 6, *[0.01] * 8, *[0.2] * 4, 1.0, 9.0)
_FAILS, _LOSES_REPLY, _DIES = 0.01, 0.01, 0.015
_NOTIFIES = 0.8
_CANCELS, _PROMOTES_EVERY = 3, 7.0
_TROUBLES = ("killed", "half written", "vanished", "stubborn", "false report")


class _VirtualClock(ScriptedClock):
    """The clock of the world: virtual time."""

    def __init__(self, time: VirtualTime) -> None:
        super().__init__()
        self._time = time

    def __call__(self) -> datetime:
        return self._time()


class _Story:
    """One interleaving, which its seed decides."""

    def __init__(self, template: Template, folder: Path, seed: int) -> None:
        self.time = VirtualTime()
        self.world = World(template, folder, clock=_VirtualClock(self.time))
        self.world.skew_seconds = _SKEWS[seed % len(_SKEWS)]
        self.random = random.Random(seed)
        self.checker = InvariantChecker(self.world)
        self.tally = Counter[str]()
        self.has_faults = True
        self._is_over = False
        self._replicas: dict[str, VirtualReplica] = {}
        for name in _MODELS[1:]:
            with self.world.database.write() as connection:
                model = models.find(connection, MODEL)
                assert model is not None
                models.create(connection, name, model.owner, model.spec, self.time())

    def run(self) -> None:
        """Run until all jobs have ended. Raises AssertionError."""
        for name in "abc":
            self.start(name)
        for number in range(_DATASETS):
            for place, model in enumerate(_MODELS):
                shard = f"good-{(number + place) % GOOD_SHARDS}"
                at = self.random.uniform(0, _FAULTS_UNTIL / 2)
                self.time.after(at, partial(self._post, shard, model))
        for _ in range(_CANCELS):
            self.time.after(self.random.uniform(0, _FAULTS_UNTIL), self._cancel)
        self.time.after(_PROMOTES_EVERY, self._promote)
        self.time.after(1.0, self._second)
        self.time.run(_FAULTS_UNTIL)
        self.has_faults = False
        self.world.cluster.heal()
        self.time.run(_ENDS_UNTIL, lambda: self._is_over)

    def _post(self, shard: str, model: str) -> None:
        self.world.post(shard, model)

    def _cancel(self) -> None:
        open_jobs = [job.id for job in self.world.jobs() if job.state in CANCELLABLE]
        if open_jobs:
            self.tally["cancels"] += self.world.cancel(self.random.choice(open_jobs))

    def _promote(self) -> None:
        """Let another version answer, or the one before."""
        chosen = self.random.randint(0, self.checker.head)
        self.tally["promotions"] += self.world.promote(chosen) if chosen else self.world.roll_back()
        self.time.after(_PROMOTES_EVERY, self._promote)

    def close(self) -> None:
        """End the replicas."""
        self.time.close()
        # The next world has another file under the same address.
        for name in self._replicas:
            database_of(name, self.world.database_url).close()
        self.world.close()

    def start(self, name: str) -> None:
        """Start a process of that name, with empty memory."""
        skew = self.world.skew_seconds / 2 * {"a": 0, "b": 1, "c": -1}[name]
        # As `service.app` names them: the lease of one that died stays its own.
        number = self.tally["starts"]
        injector = _Injector(self, name)
        context = self._context(injector, timedelta(seconds=skew))
        self._replicas[name] = VirtualReplica(f"{name}{number}", self.time, context)
        self.tally["starts"] += 1

    def kill(self, name: str) -> None:
        """Kill the process of that name, and start another one later."""
        if self._replicas[name].is_alive:
            self.tally["kills"] += 1
            self._replicas[name].kill()
            self.time.after(self.random.choice((0.5, 3.0, 12.0)), partial(self.start, name))

    def _context(self, injector: "_Injector", skew: timedelta) -> Context:
        database = database_of(injector.name, self.world.database_url)
        context = self.world.context(database)
        crashing = CrashingDatabase(database, injector)
        crashing.subscribe(context.metrics.observe_event)

        def notify_others(event: Event) -> None:
            for name, replica in self._replicas.items():
                if name != injector.name and self.random.random() < _NOTIFIES:
                    self.time.after(0.01, partial(replica.notify, event.model))

        crashing.subscribe(notify_others)
        return replace(
            context,
            database=crashing,
            store=CrashingStore(context.store, injector),
            launcher=CrashingLauncher(context.launcher, injector),
            clock=lambda: self.time() + skew,
        )

    def _second(self) -> None:
        """Advance the cluster each second, and check the invariants."""
        if self.has_faults:
            for attempt in list(self.world.cluster.alive):
                self._go_on(attempt)
        else:
            self.world.serve()
        self.checker.check()
        self._is_over = not self.has_faults and is_quiet(self.world)
        self.time.after(1.0, self._second)

    def _go_on(self, attempt: str) -> None:
        """Start an attempt, let it report or complete, or let something happen to it."""
        world, drawn = self.world, self.random.random()
        if world.cluster.word(attempt) == LaunchState.PENDING:
            world.start(attempt)
        elif drawn < 0.25:
            world.complete(attempt, self.random.choice((LaunchState.SUCCEEDED, LaunchState.FAILED)))
        elif drawn < 0.45:
            self._trouble(attempt, self.random.choice(_TROUBLES))
        elif drawn < 0.8:
            world.progress(attempt, 1)

    def _trouble(self, attempt: str, what: str) -> None:
        self.tally["troubles"] += 1
        match what:
            case "killed":
                self.world.cluster.die(attempt, LaunchState.FAILED, "killed")
            case "half written":
                self.world.leave_half(attempt)
            case "vanished":
                self.world.cluster.vanish(attempt)
            case "stubborn":
                self.world.cluster.stubborn.add(attempt)
            case _:
                self.world.cluster.claim(attempt, LaunchState.FAILED, "the head restarted")


class _Injector:
    """See FaultInjector: time passes around each call of a replica, and faults happen."""

    def __init__(self, story: _Story, name: str) -> None:
        self.name = name
        self._story = story

    def before(self, contact: Contact) -> None:
        self._pass_time(contact)
        if self._happens(_FAILS):
            raise contact.error(f"{contact.about}: no response (on purpose)")

    def inside(self, contact: Contact) -> None:
        """Nothing: a fault here makes no visible difference."""

    def after(self, contact: Contact) -> None:
        self._pass_time(contact)
        if contact.has_effect and self._happens(_LOSES_REPLY):
            raise contact.error(f"{contact.about}: the reply was lost (on purpose)")

    def _pass_time(self, contact: Contact) -> None:
        story = self._story
        story.tally["contacts"] += 1
        story.time.sleep(story.random.choice(_PAUSES if story.has_faults else _PAUSES[:14]))
        if contact.has_effect and self._happens(_DIES):
            story.kill(self.name)
            raise Killed(f"{self.name} around {contact.method} (on purpose)")

    def _happens(self, share: float) -> bool:
        return self._story.has_faults and self._story.random.random() < share


@pytest.fixture(scope="module")
def patient_template() -> Iterator[Template]:
    """Attempts are repeated until one succeeds: a run has more faults than a job has attempts by default."""
    with memory_folder() as folder:
        yield make_template(folder, max_attempts=100, reconcile_workers=4, resync_seconds=5)


@pytest.mark.parametrize("seed", _SEEDS)
def test_however_three_replicas_interleave_each_dataset_has_exactly_one_version(
    patient_template: Template, stage: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    story = _Story(patient_template, stage, seed)
    try:
        story.run()
        story.checker.check_at_the_end()
        ended = Counter(job.state for job in story.world.jobs())
        assert ended.total() == _DATASETS * len(_MODELS)
        assert ended[JobState.PUBLISHED] + ended[JobState.CANCELLED] == ended.total()
        assert ended[JobState.CANCELLED] <= _CANCELS
        expected = [job.dataset for job in story.world.jobs() if job.state == JobState.PUBLISHED]
        with story.world.database.read() as connection:
            found = [
                version.manifest.dataset
                for model in models.page(connection, None, Seek(limit=100))
                for version in versions.page(connection, model.name, None, 100)
            ]
        assert sorted(map(str, found)) == sorted(map(str, expected))
        # The run contained faults.
        assert story.tally["kills"] > 0
    finally:
        story.close()
    with capsys.disabled():
        print(f"\n  {story.time.seconds():.0f} s of virtual time, {dict(story.tally)}")
