"""One life after another, struck at each moment in turn: a death, or a reply that never came.

The moments are those before, inside and after every transaction, every write to the store and every
call to the launcher. After a death another replica takes over once the lease has run out.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from service.control.context import Context
from service.control.reconcile import Reconciler
from tests.fakes.mortal import Death, Lifeline, MortalDatabase, MortalLauncher, MortalStore
from tests.faults.invariants import Witness
from tests.faults.lives import LIVES, Life, check_end, is_quiet
from tests.faults.world import Template, World, fresh_folder

_MOST_ROUNDS = 120


@pytest.mark.parametrize("deadly", [True, False], ids=["deaths", "lost replies"])
@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.name)
def test_every_life_ends_well_wherever_it_is_struck(
    template: Template, life: Life, deadly: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    began, struck = time.monotonic(), list(_every_moment(template, life, deadly=deadly))
    assert len(struck) > 20, "a life has more moments than that"
    words = "deaths" if deadly else "lost replies"
    kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(struck).most_common(3))
    with capsys.disabled():
        print(
            f"\n  {life.name}: {len(struck)} {words} in {time.monotonic() - began:.1f} s"
            f" (most: {kinds})",
            end="",
        )


def _every_moment(template: Template, life: Life, *, deadly: bool) -> Iterator[str]:
    """What was struck, moment after moment; the life that nothing strikes is the last one."""
    moment = 1
    while True:
        lifeline = Lifeline(moment, deadly=deadly)
        with fresh_folder() as folder:
            world = World(template, folder)
            try:
                _live(world, life, lifeline)
            except AssertionError as error:
                error.add_note(f"{life.name}, struck {lifeline.struck}, moment {moment}")
                raise
            finally:
                world.close()
        if lifeline.struck is None:
            return
        yield lifeline.struck
        moment += 1


def _live(world: World, life: Life, lifeline: Lifeline) -> None:
    witness = Witness(world)
    reconciler = Reconciler(_mortal(world, lifeline))
    life.begin(world)
    for _ in range(_MOST_ROUNDS):
        try:
            reconciler.tick()
        except Death:
            witness.look()
            reconciler = Reconciler(world.context(world.database))
        world.clock.advance(1)
        life.react(world)
        if is_quiet(world):
            break
    witness.look_at_the_end()
    check_end(world, life)


def _mortal(world: World, lifeline: Lifeline) -> Context:
    context = world.context(world.database)
    return replace(
        context,
        database=MortalDatabase(context.database, lifeline),
        store=MortalStore(context.store, lifeline),
        launcher=MortalLauncher(context.launcher, lifeline),
    )
