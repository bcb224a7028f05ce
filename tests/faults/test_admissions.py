"""A crash or a lost reply at each moment between the admission of a job and its submission loses nothing."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cmcl.contract.api.jobs import JobState
from service.context import Context
from service.core.errors import DatabaseUnavailable
from service.core.principal import LOCAL
from service.core.settings import OwnerGrant
from service.jobs.reconciler import Reconciler
from service.jobs.scheduler import Scheduler
from tests.fakes.crashes import (
    Crash,
    CrashingDatabase,
    CrashingLauncher,
    CrashingStore,
    FaultAtMoment,
)
from tests.fakes.rounds import run_round
from tests.faults.world import Template, World

_MOST_ROUNDS = 60


@pytest.mark.parametrize("deadly", [True, False], ids=["crash", "lost reply"])
def test_whatever_fails_around_an_admission_the_job_is_submitted_once(
    template: Template, stage: Path, deadly: bool
) -> None:
    struck = set()
    for moment in itertools.count(1):
        fate = FaultAtMoment(moment, deadly=deadly)
        with closing(World(template, stage)) as world:
            _admit(world, fate)
            (job,) = world.jobs()
            assert (job.attempt, world.cluster.ever) == (1, [f"{job.id}-a1"]), fate.struck
        if fate.struck is None:
            break
        struck.add(fate.struck)
    assert {"inside database.write", "after database.write", "after launcher.submit"} <= struck


def _admit(world: World, fate: FaultAtMoment) -> None:
    """A job waits for a place; once there is one, the replica fails somewhere on the way to the attempt."""
    context = world.context(world.database)
    none = {"owners": {LOCAL.owns_as: OwnerGrant(running_jobs=0)}}
    full = replace(context, settings=world.settings.model_copy(update=none))
    world.post("good-0")
    reconciler = Reconciler(full)
    loops = (Scheduler(full).tick, partial(run_round, reconciler))
    _rounds(world, loops, lambda: _waits(world))
    reconciler.release()

    def has_begun() -> bool:
        return world.jobs()[0].state == JobState.RUNNING

    try:
        _rounds(world, _loops(_mortal(context, fate)), has_begun)
    except Crash:
        _rounds(world, _loops(context), has_begun)
    assert has_begun(), fate.struck


def _waits(world: World) -> bool:
    """Whether the scheduler has a prepared job."""
    (job,) = world.jobs()
    return job.state == JobState.PREPARED and job.eligible_at is not None


def _rounds(world: World, loops: Sequence[Callable[[], None]], is_over: Callable[[], bool]) -> None:
    for _ in range(_MOST_ROUNDS):
        if is_over():
            return
        for loop in loops:
            with suppress(DatabaseUnavailable):
                loop()
        world.clock.advance(2)


def _loops(context: Context) -> Sequence[Callable[[], None]]:
    """Rounds of the scheduler and of the reconciler."""
    return Scheduler(context).tick, partial(run_round, Reconciler(context))


def _mortal(context: Context, fate: FaultAtMoment) -> Context:
    return replace(
        context,
        database=CrashingDatabase(context.database, fate),
        store=CrashingStore(context.store, fate),
        launcher=CrashingLauncher(context.launcher, fate),
    )
