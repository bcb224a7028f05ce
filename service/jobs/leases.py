"""Leases of models: which instance reconciles which model, and how instances share them; and of loops that one runs."""

import os
import socket
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import Connection

from service.context import Context
from service.database.queries import instances
from service.database.rows import ModelRow


class ModelLeases:
    """The leases of one instance. One thread calls `renew`; any thread may call the rest.

    Each instance registers itself, and leases an equal share of the models with work for as long as it renews its
    registration. When one joins, the others release what they have above their new share; when one leaves or dies, the
    others claim what becomes free. The share is of the number of models and not of their work: a step of any model takes
    milliseconds, except of large files, which each instance bounds.
    """

    def __init__(
        self, context: Context, instance: str, is_busy: Callable[[str], bool] = lambda _: False
    ) -> None:
        """`is_busy` says whether a model is being processed: its lease is not released until then."""
        self._context = context
        self._instance = instance
        self._is_busy = is_busy
        self._duration = timedelta(seconds=context.tuning.lease_seconds)
        # The instances that were last seen alive, and until when.
        self._alive: Mapping[str, datetime] = {}
        # How many models with work this instance leases, as of the last round.
        self._leased = 0
        # How many of them it may lease; None: all, as the only instance.
        self._most: int | None = None

    @property
    def round_seconds(self) -> float:
        """Pause between two rounds: a few within the time of a lease."""
        return min(2.5, self._duration.total_seconds() / 6)

    def renew(self) -> list[str]:
        """Renew at half time, claim free models up to the share, release what is above. Returns the models claimed.

        A round that changes nothing writes nothing.
        """
        now = self._context.clock()
        with self._context.database.read() as connection:
            shares = instances.shares(connection)
            self._alive = alive = instances.alive(connection, now)
        others = alive.keys() - {self._instance}
        with_work = sum(shares.values())
        most = -(-with_work // (1 + len(others)))
        self._most = most if others else None
        self._leased = shares.get(self._instance, 0)
        free = with_work - self._leased - sum(shares.get(other, 0) for other in others)
        claims = min(free, max(0, most - self._leased))
        assert free >= 0, "instances lease more models than there are with work"
        excess = self._leased - most if self._leased > most + _slack(most) else 0
        is_renewed = alive.get(self._instance, now) > now + self._duration / 2
        if is_renewed and not claims and not excess:
            return []
        self._register(now)
        if excess:
            self._release(excess)
        if not claims:
            return []
        with self._context.database.write() as connection:
            claimed = instances.claim(connection, self._instance, now, claims)
        assert len(claimed) <= claims
        self._leased += len(claimed)
        return claimed

    def is_of_another(self, connection: Connection, model: ModelRow) -> bool:
        """Return whether another instance holds the lease of the model."""
        owner, now = model.lease_owner, self._context.clock()
        if owner is None or owner == self._instance:
            return False
        if self._alive.get(owner, now) <= now:
            # It has joined or renewed its leases since, or it has died.
            self._alive = instances.alive(connection, now)
        return owner in self._alive

    def holds(self, model: ModelRow) -> bool:
        """Return whether this instance holds the lease of a model with work; a free one is claimed within the share."""
        if model.lease_owner == self._instance:
            return True
        if self._most is not None and self._leased >= self._most + _slack(self._most):
            return False
        now = self._context.clock()
        if self._alive.get(self._instance, now) <= now:
            # Before the first round.
            self._register(now)
        with self._context.database.write() as connection:
            is_claimed = instances.claim_one(connection, self._instance, now, model.name)
        self._leased += is_claimed
        return is_claimed

    def release(self) -> None:
        """Release all leases, and leave the others to share them."""
        with self._context.database.write() as connection:
            instances.remove(connection, self._instance)

    def _register(self, now: datetime) -> None:
        """Register this instance or renew its leases. Other threads of it may do so at the same time."""
        until = now + self._duration
        register = partial(instances.register, instance=self._instance, now=now, until=until)
        self._context.database.settle(register)
        self._alive = {**self._alive, self._instance: until}

    def _release(self, number: int) -> None:
        with self._context.database.write() as connection:
            names = instances.leased(connection, self._instance)
            assert number > 0
            idle = [name for name in names if not self._is_busy(name)][:number]
            instances.release(connection, self._instance, idle)
        self._leased -= len(idle)


class Lease:
    """A named lease in the database: one instance at a time runs a loop for all."""

    def __init__(self, context: Context, name: str, duration: timedelta) -> None:
        assert duration > timedelta(0)
        self._context = context
        self._name = name
        self._duration = duration
        self._owner = uuid.uuid4().hex

    def acquire(self) -> bool:
        """Acquire or renew the lease; False if another instance holds it."""
        now = self._context.clock()
        return self._context.database.settle(
            lambda connection: instances.claim_lease(
                connection, self._name, self._owner, now, now + self._duration
            )
        )

    def release(self) -> None:
        """Release the lease if this instance holds it, so that another one continues at once."""
        with self._context.database.write() as connection:
            instances.release_lease(connection, self._name, self._owner)


def new_name() -> str:
    """Return a name for an instance that no other one has."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _slack(most: int) -> int:
    """By how much the share may be exceeded before leases are released: models come and go all the time."""
    return max(1, most // 10)
