"""Instances share the models with work: equally, soon after one joins, leaves or dies, and none is without an owner."""

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from cmcl.contract.model import ModelSpec
from service.database.queries import instances as queries
from service.database.queries import models
from service.database.tables import leases
from service.database.tables import models as table
from service.jobs.leases import ModelLeases
from service.jobs.reconciler import Reconciler
from tests.fakes.control_plane import ControlPlane

LEASE = 6
SPEC = ModelSpec(modalities={"image": 4, "text": 3})


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane with sixty models whose pointers are not written."""
    plane = ControlPlane(tmp_path, lease_seconds=LEASE)
    with plane.context.database.write() as connection:
        for number in range(60):
            models.create(connection, f"m{number:02}", "default", SPEC, plane.clock())
            models.set_live(connection, f"m{number:02}", 1, 1, plane.clock())
    yield plane
    plane.close()


class Instances:
    """Instances whose rounds of leases alternate, a second apart, and for how long each model had no owner."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.alive: dict[str, ModelLeases] = {}
        self.busy: set[str] = set()
        self._free_since: dict[str, float] = {}
        self.longest_free = 0.0

    def join(self, *names: str) -> None:
        for name in names:
            instance = f"host-1-{name:0>8}"
            self.alive[name] = ModelLeases(
                self.plane.context, instance, lambda model: model in self.busy
            )

    def rounds(self, number: int) -> None:
        for _ in range(number):
            for each in self.alive.values():
                each.renew()
            self._look()
            self.plane.clock.advance(1)

    def counts(self) -> dict[str, int]:
        """How many models each instance holds the lease of."""
        owners = Counter(owner for owner in self._owners().values() if owner is not None)
        return {name: owners[f"host-1-{name:0>8}"] for name in self.alive}

    def _owners(self) -> dict[str, str | None]:
        with self.plane.context.database.read() as connection:
            alive = queries.alive(connection, self.plane.clock())
            rows = connection.execute(select(table.c.name, table.c.lease_owner)).all()
        return {name: owner if owner in alive else None for name, owner in rows}

    def _look(self) -> None:
        now = self.plane.clock().timestamp()
        for name, owner in self._owners().items():
            if owner is None:
                since = self._free_since.setdefault(name, now)
                self.longest_free = max(self.longest_free, now - since)
            else:
                self._free_since.pop(name, None)


@pytest.fixture
def instances(plane: ControlPlane) -> Instances:
    return Instances(plane)


def _is_even(counts: dict[str, int]) -> bool:
    share = 60 / len(counts)
    return sum(counts.values()) == 60 and all(
        abs(count - share) <= max(1, share // 10) for count in counts.values()
    )


def test_the_only_replica_has_all_models(instances: Instances) -> None:
    instances.join("a")
    instances.rounds(1)
    assert instances.counts() == {"a": 60}


def test_leases_balance_when_replicas_join_leave_and_die(instances: Instances) -> None:
    instances.join("a")
    instances.rounds(2)
    instances.join("b", "c")
    instances.rounds(5)
    assert _is_even(instances.counts())
    instances.alive.pop("b").release()
    instances.rounds(4)
    assert _is_even(instances.counts())
    # Dead: it neither renews nor releases.
    instances.alive.pop("c")
    instances.rounds(LEASE + 2)
    assert instances.counts() == {"a": 60}
    assert instances.longest_free <= LEASE


def test_replicas_that_start_together_share_at_once(instances: Instances) -> None:
    instances.join(*"abc")
    instances.rounds(4)
    assert _is_even(instances.counts())


def test_a_model_that_is_processed_keeps_its_lease(instances: Instances) -> None:
    instances.join("a")
    instances.rounds(1)
    instances.busy = {f"m{number:02}" for number in range(40)}
    instances.join("b")
    instances.rounds(4)
    assert instances.counts() == {"a": 40, "b": 20}


def test_leases_that_are_shared_are_renewed_and_a_quiet_round_writes_nothing(
    plane: ControlPlane, instances: Instances
) -> None:
    instances.join("a", "b")
    instances.rounds(6)
    before = instances.counts()
    instances.rounds(3 * LEASE)
    assert instances.counts() == before
    assert instances.longest_free == 0 or instances.longest_free <= LEASE
    for each in instances.alive.values():
        each.renew()
    writes = plane.context.metrics.registry.get_sample_value
    labels = {"kind": "write", "outcome": "ok"}
    written = writes("cmcl_service_database_seconds_count", labels)
    for each in instances.alive.values():
        each.renew()
    assert writes("cmcl_service_database_seconds_count", labels) == written


def test_an_event_claims_a_free_model_within_the_share_only(
    plane: ControlPlane, instances: Instances
) -> None:
    instances.join("a", "b")
    instances.rounds(4)
    with plane.context.database.write() as connection:
        for number in range(60, 80):
            models.create(connection, f"m{number:02}", "default", SPEC, plane.clock())
            models.set_live(connection, f"m{number:02}", 1, 1, plane.clock())
    claimed = [instances.alive["a"].holds(plane.model(f"m{number:02}")) for number in range(60, 80)]
    assert 1 <= sum(claimed) <= 10
    assert not instances.alive["b"].holds(plane.model("m60"))


def test_a_model_that_was_claimed_is_processed_at_once(plane: ControlPlane) -> None:
    """Not with the next resync: it may have been without an owner for a while."""
    first = Reconciler(plane.context)
    first.step(threading.Event())
    second = Reconciler(plane.context)
    second.step(threading.Event())
    # All checks of pointers after the start are due.
    plane.clock.advance(2)
    before = second.queue.depth()
    first.release()
    plane.clock.advance(1)
    second.step(threading.Event())
    assert second.queue.depth() == before + 120


def test_registrations_of_replicas_that_died_are_removed(
    plane: ControlPlane, instances: Instances
) -> None:
    instances.join("a")
    instances.rounds(1)
    del instances.alive["a"]
    plane.clock.now += timedelta(hours=2)
    instances.join("b")
    instances.rounds(1)
    with plane.context.database.read() as connection:
        names = list(connection.scalars(select(leases.c.name)))
    assert [name for name in names if name.startswith("instance/")] == ["instance/0000000b"]
