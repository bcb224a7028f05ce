"""Every change is recorded, also after crashes and by late replicas."""

import itertools
import time
from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import func, select

from cmcl.contract.model import Gate
from cmcl.storage import layout
from service.database.engine import open_database
from service.database.queries import backup
from service.database.tables import backup_outbox
from service.maintenance.backup import BackupWriter
from tests.fakes.control_plane import ControlPlane
from tests.fakes.crashes import Crash, CrashingDatabase, CrashingStore, FaultAtMoment
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.lost_database import everything, rebuild, wreck

GATE = "/v1/models/scenes/gate"


class OvertakenStore(FlakyStore):
    """A store before whose first write another process acts."""

    def __init__(self, store: FlakyStore, during: Callable[[], None]) -> None:
        super().__init__(store)
        self._during = [during]

    def put(self, key: str, data: bytes) -> None:
        while self._during:
            self._during.pop()()
        super().put(key, data)


def _unrecorded(plane: ControlPlane) -> int:
    with plane.context.database.read() as connection:
        return connection.execute(select(func.count()).select_from(backup_outbox)).scalar_one()


def _written(plane: ControlPlane, outcome: str) -> float:
    counter = plane.context.metrics.records.labels(outcome)
    return sum(sample.value for metric in counter.collect() for sample in metric.samples)


def test_an_unavailable_store_is_caught_up_with_later(plane: ControlPlane) -> None:
    plane.create_model("new")
    plane.store.broken = layout.records()
    recorder = BackupWriter(plane.context)
    assert not recorder.round()
    assert _unrecorded(plane) > 0
    assert _written(plane, "failed") == 1
    plane.store.broken = None
    assert recorder.round()
    assert _unrecorded(plane) == 0
    assert plane.store.read(layout.model_record("new"))


def test_a_record_that_cannot_be_written_holds_no_other(plane: ControlPlane) -> None:
    plane.create_model("new")
    plane.create_model("odd")
    with plane.context.database.write() as connection:
        # More than are read at once.
        for _ in range(500):
            backup.enqueue(connection, "model", "odd")
    plane.create_model("newer")
    plane.store.broken = layout.model_record("odd")
    recorder = BackupWriter(plane.context)
    for _ in range(8):
        assert not recorder.round()
    assert plane.store.read(layout.model_record("new"))
    assert plane.store.read(layout.model_record("newer"))
    with plane.context.database.read() as connection:
        assert list(connection.scalars(select(backup_outbox.c.name))) == ["odd"]


def test_nothing_is_written_where_nothing_changed(plane: ControlPlane) -> None:
    plane.store.calls.clear()
    assert BackupWriter(plane.context).round()
    assert plane.store.calls == []


def test_a_recorder_may_die_at_any_moment(plane: ControlPlane) -> None:
    for moment in itertools.count(1):
        plane.create_model(f"new-{moment}")
        lifeline = FaultAtMoment(moment)
        mortal = replace(
            plane.context,
            database=CrashingDatabase(plane.context.database, lifeline),
            store=CrashingStore(plane.store, lifeline),
        )
        try:
            BackupWriter(mortal).round()
        except Crash:
            plane.clock.advance(2)
        plane.record()
        assert _unrecorded(plane) == 0
        if lifeline.struck is None:
            break
    before = everything(plane.context.database)
    wreck(plane.context.database)
    assert rebuild(plane).damaged == []
    assert everything(plane.context.database) == before


def test_one_that_was_overtaken_records_again(plane: ControlPlane) -> None:
    """It may have written older rows than the process that overtook it."""

    def during() -> None:
        plane.clock.advance(2)
        assert plane.client.put(GATE, json={"max_drift": 0.25}).status_code == 200
        plane.record()
        assert _unrecorded(plane) == 0
        # The next one need not wait for its lease.
        plane.clock.advance(2)

    plane.store.broken = layout.records()
    assert plane.client.put(GATE, json={"max_drift": 0.5}).status_code == 200
    plane.store.broken = None
    slow = replace(plane.context, store=OvertakenStore(plane.store, during))
    assert BackupWriter(slow).round()
    assert _unrecorded(plane) == 1
    plane.clock.advance(2)
    plane.record()
    wreck(plane.context.database)
    rebuild(plane)
    assert plane.model().gate == Gate(max_drift=0.25)
    assert plane.model().gate_revision == 3


def test_one_that_stops_does_not_delay_its_successor(plane: ControlPlane) -> None:
    first, second = BackupWriter(plane.context), BackupWriter(plane.context)
    plane.create_model("new")
    assert first.round()
    first.release()
    plane.create_model("newer")
    assert second.round()
    assert _unrecorded(plane) == 0
    first.release()
    plane.create_model("newest")
    assert BackupWriter(plane.context).round()
    assert _unrecorded(plane) > 0, "the lease of another one was released"


def test_a_process_that_stops_releases_all_leases(plane: ControlPlane) -> None:
    database = open_database(plane.context.settings.database_url)

    def held() -> list[str]:
        with database.read() as connection:
            return backup.holders(connection, plane.clock())

    with plane.client.running():
        plane.create_model("new")
        deadline = time.monotonic() + 60
        while "backup" not in held():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert held() == []
    database.close()
