"""A replica that pauses before each call to the outside world until the test resumes it.

Its reconciler runs in its own thread, and never while the test runs: one of the two waits. So the
interleaving of two replicas is what the test chooses, and can be repeated.
"""

import threading
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from enum import Enum

from sqlalchemy import select

from service.core.errors import DatabaseUnavailable
from service.database.engine import Database
from service.database.tables import models
from service.jobs.reconciler import Reconciler
from tests.fakes.crashes import Contact, Crash, CrashingDatabase, CrashingLauncher, CrashingStore
from tests.fakes.rounds import run_round
from tests.faults.world import World, database_of

_HANGS_SECONDS = 60.0
_ROUND = Contact("reconciler", "round", "", DatabaseUnavailable, has_effect=False)


class Order(Enum):
    """The outcome of a call."""

    GO = "goes well"
    FAIL = "is not done, and fails"
    LOSE = "is done, and fails all the same"
    DIE = "is the last thing, and not done"


class Replica:
    """One process of the service, which can be killed and restarted; its clock may be skewed."""

    _go: threading.Semaphore
    _stands: threading.Semaphore
    _database: Database

    def __init__(self, world: World, name: str, skew_seconds: float, tally: Counter[str]) -> None:
        self.name = name
        self._world = world
        self._skew = timedelta(seconds=skew_seconds)
        self._tally = tally
        self._start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def contact(self) -> Contact:
        """The call before which it pauses."""
        return self._contact

    @property
    def leads(self) -> bool:
        """Whether it holds the lease of a model."""
        query = select(models.c.name).where(models.c.lease_owner == self._reconciler.instance)
        with self._world.database.read() as connection:
            return connection.execute(query).first() is not None

    def go(self, order: Order = Order.GO) -> None:
        """Run to the next call. Raises AssertionError if the reconciler's thread ends or hangs."""
        if not self.is_alive:
            return
        self._tally["contacts"] += 1
        if order is not Order.GO:
            self._tally[f"{order.name.lower()} {self._contact.port}.{self._contact.method}"] += 1
        self._order = order
        self._go.release()
        assert self._stands.acquire(timeout=_HANGS_SECONDS), f"{self.name} hangs: {self._contact}"
        if self._mistake is not None:
            raise AssertionError(f"replica {self.name} ended by itself") from self._mistake

    def round(self) -> None:
        """Run to the end of a round."""
        self.go()
        while self.is_alive and self._contact is not _ROUND:
            self.go()

    def kill(self) -> None:
        """Kill it at the call before which it pauses; only what it has written is left."""
        self.go(Order.DIE)
        self._thread.join(_HANGS_SECONDS)
        self._database.close()

    def end(self) -> None:
        """End of the schedule: this crash does not count."""
        self._tally = Counter()
        self.kill()

    def restart(self) -> None:
        """Start another process under the same name, with empty memory."""
        if not self.is_alive:
            self._start()

    def before(self, contact: Contact) -> None:
        """See FaultInjector: pause, in this replica's thread."""
        # An open transaction would block all others.
        held = self._database.engine.pool.checkedout()  # type: ignore[attr-defined]
        assert held == 0, f"inside of a transaction: {contact}"
        self._stand_at(contact)
        if self._order is Order.FAIL:
            raise contact.error(f"{contact.about}: no response (on purpose)")
        self._loses = self._order is Order.LOSE and contact.has_effect

    def inside(self, contact: Contact) -> None:
        """See FaultInjector. A fault here would make no visible difference."""

    def after(self, contact: Contact) -> None:
        """See FaultInjector."""
        if self._loses:
            self._loses = False
            raise contact.error(f"{contact.about}: the reply was lost (on purpose)")

    def _start(self) -> None:
        self._contact, self._order, self._loses = _ROUND, Order.GO, False
        self._mistake: BaseException | None = None
        self._go = threading.Semaphore(0)
        self._stands = threading.Semaphore(0)
        self._database = database_of(self.name, self._world.database_url)
        context = self._world.context(self._database)
        mortal = replace(
            context,
            database=CrashingDatabase(self._database, self),
            store=CrashingStore(context.store, self),
            launcher=CrashingLauncher(context.launcher, self),
            clock=self._clock,
        )
        self._reconciler = Reconciler(mortal)
        self._thread = threading.Thread(target=self._live, name=self.name, daemon=True)
        self._thread.start()
        assert self._stands.acquire(timeout=_HANGS_SECONDS)

    def _live(self) -> None:
        try:
            while True:
                self._stand_at(_ROUND)
                self._tick()
        except Crash:
            pass
        except BaseException as mistake:  # noqa: BLE001 (it is shown where the test can see it)
            self._mistake = mistake
        finally:
            self._stands.release()

    def _tick(self) -> None:
        try:
            run_round(self._reconciler)
        except DatabaseUnavailable:
            # As the reconciler's own loop does: the round is over, the next one comes.
            return

    def _stand_at(self, contact: Contact) -> None:
        self._contact = contact
        self._stands.release()
        self._go.acquire()
        if self._order is Order.DIE:
            raise Crash(f"{self.name} before {contact.port}.{contact.method} (on purpose)")

    def _clock(self) -> datetime:
        return self._world.clock() + self._skew
