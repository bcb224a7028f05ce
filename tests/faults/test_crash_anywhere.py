"""Every scenario, with a crash or a lost reply at each moment in turn.

The moments are those before, inside and after every transaction, every write to the store and every
call to the launcher; of those at which a crash leaves the same world, the short run takes one. After a
crash another replica takes over once the lease has expired.
"""

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from service.context import Context
from service.core.errors import DatabaseUnavailable
from service.jobs.reconciler import Reconciler
from tests.fakes.crashes import (
    Contact,
    Crash,
    CrashingDatabase,
    CrashingLauncher,
    CrashingStore,
    FaultAtMoment,
    FaultInjector,
)
from tests.fakes.rounds import run_round
from tests.faults.invariants import InvariantChecker
from tests.faults.saved_world import SavedWorld
from tests.faults.scenarios import SCENARIOS, Scenario, check_end, is_quiet
from tests.faults.world import Template, World

_MOST_ROUNDS = 120
_IS_LONG = "CMCL_FAULT_EXAMPLES" in os.environ
# In the short run of every change, every n-th moment is a crash where there are many, and every n-th gets an error. Each
# scenario begins at another one, so that together they have those around every kind of call.
_DEATHS, _ERRORS = (1, 1) if _IS_LONG else (3, 11)
_MANY = 12
# Calls of the launcher that change nothing.
_LOOKS = ("statuses", "log")


class CrashMoments:
    """Saves the world once for each state of database, store and cluster that a crash can leave behind.

    A crash before a call leaves what a crash after the call before it leaves, unless time has passed since; a
    crash inside a transaction leaves what was there before the transaction.
    """

    def __init__(self, save: Callable[[], SavedWorld]) -> None:
        # The moment, its round, and what a crash leaves there.
        self.saved: list[tuple[str, int, SavedWorld]] = []
        self._save = save
        self._round = 0
        self._is_new_round = True

    def begin_round(self) -> None:
        """Called before each round, which begins later than the one before it ended."""
        self._round += 1
        self._is_new_round = True

    def before(self, contact: Contact) -> None:
        """See FaultInjector."""
        if self._is_new_round and contact.has_effect:
            self._is_new_round = False
            self._keep("before", contact)

    def inside(self, contact: Contact) -> None:
        """See FaultInjector."""

    def after(self, contact: Contact) -> None:
        """See FaultInjector."""
        if contact.has_effect and contact.method not in _LOOKS:
            self._keep("after", contact)

    def _keep(self, when: str, contact: Contact) -> None:
        moment = f"{when} {contact.port}.{contact.method}"
        self.saved.append((moment, self._round, self._save()))


@pytest.mark.parametrize("life", SCENARIOS, ids=lambda life: life.name)
def test_a_death_at_any_moment_changes_no_end(
    template: Template, stage: Path, life: Scenario, capsys: pytest.CaptureFixture[str]
) -> None:
    every_moment = partial(_strike, template, stage, life, FaultAtMoment, 1)
    deaths = every_moment() if _IS_LONG else _die(template, stage, life)
    _report(capsys, life, "deaths", deaths)


@pytest.mark.parametrize("life", SCENARIOS, ids=lambda life: life.name)
def test_an_error_at_any_moment_changes_no_end(
    template: Template, stage: Path, life: Scenario, capsys: pytest.CaptureFixture[str]
) -> None:
    fate = partial(FaultAtMoment, deadly=False)
    _report(capsys, life, "errors", _strike(template, stage, life, fate, _ERRORS))


def _begin(template: Template, stage: Path, life: Scenario) -> SavedWorld:
    """The world from which on the scenario differs from all others: until there no fault is injected."""
    with closing(World(template, stage)) as world:
        life.begin(world)
        reconciler = Reconciler(world.context(world.database))
        for _ in range(_MOST_ROUNDS):
            if life.is_distinct(world):
                break
            run_round(reconciler)
            _end_round(world, life)
        assert life.is_distinct(world), f"{life.name} is never told apart"
        reconciler.release()
        return SavedWorld(world, stage)


def _die(template: Template, stage: Path, life: Scenario) -> Iterator[str]:
    """The distinct moments of one run; another process continues from what a crash leaves at each of them."""
    with closing(_begin(template, stage, life).restored(template, stage)) as world:
        moments = CrashMoments(partial(SavedWorld, world, stage))
        _live(world, life, moments)
    stride = _DEATHS if len(moments.saved) > _MANY else 1
    for moment, began_round, saved in moments.saved[SCENARIOS.index(life) % stride :: stride]:
        with closing(saved.restored(template, stage)) as world:
            try:
                _live_on(world, life, _MOST_ROUNDS - began_round)
            except AssertionError as error:
                error.add_note(f"{life.name}, struck {moment}, round {began_round}")
                raise
        yield moment


def _live_on(world: World, life: Scenario, most_rounds: int) -> None:
    """Continue after a crash, with a reconciler without state in memory."""
    checker = InvariantChecker(world)
    checker.check()
    reconciler = Reconciler(world.context(world.database))
    for _ in range(most_rounds):
        if _end_round(world, life):
            break
        run_round(reconciler)
    checker.check_at_the_end()
    check_end(world, life)


def _end_round(world: World, life: Scenario) -> bool:
    """Let time pass, and let users and the cluster react. Returns whether nothing is left to do."""
    world.clock.advance(2)
    life.react(world)
    return is_quiet(world)


def _strike(
    template: Template,
    stage: Path,
    life: Scenario,
    fate: Callable[[int], FaultAtMoment],
    stride: int,
) -> Iterator[str]:
    """The moments that were hit, one after the other; a run without a hit is the last one."""
    begun = _begin(template, stage, life)
    for moment in itertools.count(1, stride):
        lifeline = fate(moment)
        with closing(begun.restored(template, stage)) as world:
            try:
                _live(world, life, lifeline)
            except AssertionError as error:
                error.add_note(f"{life.name}, struck {lifeline.struck}, moment {moment}")
                raise
        if lifeline.struck is None:
            return
        yield lifeline.struck


def _live(world: World, life: Scenario, lifeline: FaultAtMoment | CrashMoments) -> None:
    checker, context = InvariantChecker(world), world.context(world.database)
    turns = _turns(world, life, context, lifeline)
    for _ in range(_MOST_ROUNDS):
        lifeline.begin_round()
        try:
            run_round(next(turns))
        except DatabaseUnavailable:
            # As the reconciler's own loop does: the round is over, the next one comes.
            checker.check()
        except Crash:
            checker.check()
            turns = itertools.repeat(Reconciler(context))
        if _end_round(world, life):
            break
    checker.check_at_the_end()
    check_end(world, life)


def _turns(
    world: World, life: Scenario, context: Context, lifeline: FaultInjector
) -> Iterator[Reconciler]:
    """Yield the reconciler of each round: while the scenario is distinct, the one with injected faults."""
    for reconciler, is_over in (
        (Reconciler(_mortal(context, lifeline)), life.is_common),
        (Reconciler(context), lambda _: False),
    ):
        while not is_over(world):
            yield reconciler
        with suppress(DatabaseUnavailable):
            # If this fails, its leases expire.
            reconciler.release()


def _mortal(context: Context, lifeline: FaultInjector) -> Context:
    return replace(
        context,
        database=CrashingDatabase(context.database, lifeline),
        store=CrashingStore(context.store, lifeline),
        launcher=CrashingLauncher(context.launcher, lifeline),
    )


def _report(
    capsys: pytest.CaptureFixture[str], life: Scenario, what: str, strikes: Iterator[str]
) -> None:
    """Numbers that a report can quote."""
    began = time.monotonic()
    struck = Counter(strikes)
    assert struck, "the life has no moment of its own"
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(struck.items()))
    with capsys.disabled():
        seconds = time.monotonic() - began
        print(f"\n  {life.name}: {struck.total()} {what} in {seconds:.1f} s: {kinds}", end="")
