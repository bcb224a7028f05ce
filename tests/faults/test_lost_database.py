"""Every run loses its database after each round that is its own, and continues with a rebuilt one.

With records of that moment, every run ends as expected. With records that are some seconds old, later
work is found in the store or repeated: never counted twice, and the live pointer never goes back.
"""

import os
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from cmcl.contract.api.jobs import FINAL_STATES, JobState
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.versions import check_object, read_live, read_version
from service.context import Context
from service.database import tables
from service.database.engine import Database
from service.jobs.reconciler import Reconciler
from service.maintenance.backup import BackupWriter
from service.maintenance.rebuild import Rebuild
from tests.fakes.rounds import run_round
from tests.faults.saved_world import SavedWorld
from tests.faults.scenarios import SCENARIOS, Scenario, check_end, is_quiet
from tests.faults.world import Template, World

_MOST_ROUNDS = 120
# In the short run of every change, only every n-th round loses its database.
_EVERY_ROUND = "CMCL_FAULT_EXAMPLES" in os.environ
# Rounds whose records are lost with the database.
_LAGS = (0, 1, 3) if _EVERY_ROUND else (0, 2)

Records = dict[str, bytes]


@pytest.mark.parametrize("life", SCENARIOS, ids=lambda life: life.name)
def test_a_life_ends_as_it_must_after_any_loss(
    template: Template, stage: Path, life: Scenario
) -> None:
    """The rounds before a loss run once for all losses; the first world ended without one."""
    with closing(World(template, stage)) as world:
        past, saved = _live(world, stage, life)
        _check(world)
        check_end(world, life)
    assert saved, "the life has no moment of its own"
    turn = SCENARIOS.index(life)
    for place, (number, before) in enumerate(saved.items()):
        # Every other loss takes the records of the last rounds with it, or in the long run each loss with each lag.
        for lag in _LAGS if _EVERY_ROUND else (_LAGS[(place + turn) % len(_LAGS)],):
            with closing(before.restored(template, stage)) as world:
                try:
                    _lose(world.context(world.database), past[max(0, number - lag)])
                    _live_on(world, life, _MOST_ROUNDS - number)
                    _check(world)
                    if lag == 0:
                        check_end(world, life)
                    else:
                        # The decision on a held job must be made again.
                        states = {job.state for job in world.jobs()}
                        assert states <= FINAL_STATES | {JobState.HELD}, states
                except AssertionError as error:
                    error.add_note(f"{life.name}, lost after round {number}, lag {lag}")
                    raise


def _live(world: World, stage: Path, life: Scenario) -> tuple[list[Records], dict[int, SavedWorld]]:
    """The records after each round until nothing is left to do, and the worlds in which the database is lost.

    Those are the worlds of rounds that are as in no other scenario, or whose records would be.
    """
    context = world.context(world.database)
    reconciler = Reconciler(context)
    life.begin(world)
    past, saved = [_recorded(context)], {}
    own, common, stride = 0, 0, 1 if _EVERY_ROUND else 2
    for number in range(1, _MOST_ROUNDS):
        _run_round(world, life, reconciler)
        past.append(_recorded(context))
        common += life.is_common(world)
        if _EVERY_ROUND or (life.is_distinct(world) and common <= _LAGS[-1]):
            if own % stride == 0:
                saved[number] = SavedWorld(world, stage)
            own += 1
        if is_quiet(world):
            break
    return past, saved


def _live_on(world: World, life: Scenario, most_rounds: int) -> None:
    """Continue after a loss, with a reconciler without state in memory."""
    context = world.context(world.database)
    reconciler = Reconciler(context)
    for _ in range(1, most_rounds):
        _run_round(world, life, reconciler)
        _record(context)
        if is_quiet(world):
            break


def _run_round(world: World, life: Scenario, reconciler: Reconciler) -> None:
    run_round(reconciler)
    world.clock.advance(2)
    life.react(world)


def _record(context: Context) -> None:
    """Record everything."""
    assert BackupWriter(context).round()
    with context.database.write() as connection:
        # The next recorder is another process: it need not wait.
        connection.execute(delete(tables.leases))


def _recorded(context: Context) -> Records:
    """The content of the store once everything is recorded."""
    _record(context)
    return {key: context.store.read(key) for key in context.store.keys(layout.records())}


def _lose(context: Context, records: Records) -> None:
    """Lose the database and the records newer than these, then rebuild."""
    _empty(context.database)
    for key in list(context.store.keys(layout.records())):
        context.store.delete(key)
    for key, data in records.items():
        context.store.put(key, data)
    before = {name: read_live(context.store, name) for name in context.store.folders("models/")}
    work = Rebuild(context.store, "full", None, now=context.clock(), report=lambda _: None)
    work.fill(context.database, work.read())
    assert work.findings.damaged == []
    with context.database.read() as connection:
        for row in connection.execute(select(tables.models)).all():
            pointer = before.get(row.name)
            if pointer is not None:
                assert (row.live_generation, row.live_revision) >= pointer.order


def _empty(database: Database) -> None:
    """Empty the tables."""
    with database.write() as connection:
        for table in reversed(tables.metadata.sorted_tables):
            if table is not tables.event_positions:
                connection.execute(delete(table))
        connection.execute(update(tables.event_positions).values(newest=0))


def _check(world: World) -> None:
    """Each dataset became one version at most, and each version is whole."""
    with world.database.read() as connection:
        models = connection.execute(select(tables.models)).all()
        query = select(tables.versions).order_by(tables.versions.c.model, tables.versions.c.number)
        versions = connection.execute(query).all()
    for model in models:
        chain = [version for version in versions if version.model == model.name]
        assert [version.number for version in chain] == list(range(1, model.head + 1))
        learned = Counter(version.manifest["dataset"] for version in chain)
        assert all(count == 1 for count in learned.values()), f"learned twice: {learned}"
        for version in chain:
            manifest = VersionManifest.model_validate(version.manifest)
            assert read_version(world.store, model.name, version.number) == manifest
            for entry in manifest.own.values():
                check_object(world.store, layout.blob(entry.sha256), entry)
        pointer = read_live(world.store, model.name)
        shown = None if pointer is None else (pointer.version, pointer.generation)
        assert shown == ((model.live_version, model.live_generation) if chain else None)
