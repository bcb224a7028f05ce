"""Events, emitted in the transaction of the change that they describe.

The rule: the query that changes a row emits the event of the change. A branch, which spans several rows, is
written by one function, which emits it.

Listeners continue after the last event that they have seen, so no event may ever appear before one that was read. The
numbers of a PostgreSQL sequence have no such order: they are assigned before the commit, and transaction 8 may commit
after transaction 9 was read. So an event is inserted without a position. `number` assigns positions, one transaction at
a time (it locks the only row of `event_positions`), to committed events only: a reader of one position has seen all
smaller ones. Transaction ids would need no second step, but they restart where a database is restored from a dump, and
a listener's position would be meaningless there.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Select, bindparam, delete, insert, select, update

from service.database.engine import Seek, announce_after_commit, notify
from service.database.queries import backup, webhooks
from service.database.queries.deliveries import MOST_WAITING
from service.database.rows import Event, EventRow
from service.database.tables import event_positions, events, jobs

# Kind of the event that subscribers see where messages to webhooks were dropped; it is not stored.
SKIPPED = "webhook.skipped"
# Fields of an event that are columns.
_STORED = [field.name for field in fields(Event) if field.name != "seen"]
# Events that are numbered in one transaction.
MOST_AT_ONCE = 1000


@dataclass(frozen=True)
class EventFilter:
    """Filter of events; None, and no kinds, do not restrict."""

    owner: str | None = None
    model: str | None = None
    job: str | None = None
    kinds: frozenset[str] = frozenset()

    def covers(self, event: EventRow) -> bool:
        return (
            self.owner in (None, event.owner)
            and self.model in (None, event.model)
            and self.job in (None, event.job)
            and (not self.kinds or event.kind in self.kinds)
        )

    def restrict(self, query: Select[Any]) -> Select[Any]:
        for column in ("owner", "model", "job"):
            value = getattr(self, column)
            if value is not None:
                query = query.where(events.c[column] == value)
        return query.where(events.c.kind.in_(self.kinds)) if self.kinds else query


def emit(connection: Connection, event: Event, now: datetime) -> None:
    """Insert an event and the messages for webhooks, and have the change backed up.

    Streams, webhooks and the subscribers of the database see it once this transaction is committed.
    """
    stored = {column: getattr(event, column) for column in _STORED}
    connection.execute(insert(events).values(created_at=now, **stored))
    if event.dataset is not None and event.version is None:
        backup.enqueue(connection, "dataset", event.dataset)
    else:
        backup.enqueue(connection, "model", event.model)
    announce_after_commit(connection, event)
    notify(connection, event.model)
    for owner, number in webhooks.notify(connection, event, now).items():
        # For the subscribers alone: stored as an event, it would go to the same webhooks.
        why = f"no message of {event.kind} for {number} webhooks of owner {owner!r}: "
        why += f"{MOST_WAITING} of its messages wait"
        data = {"number": number, "message": why}
        skipped = Event(kind=SKIPPED, owner=event.owner, model=event.model, data=data)
        announce_after_commit(connection, skipped)


def has_unnumbered(connection: Connection) -> bool:
    """Return whether `number` has anything to do; writes nothing."""
    query = select(events.c.sequence).where(events.c.position.is_(None)).limit(1)
    return connection.execute(query).first() is not None


def number(connection: Connection) -> int:
    """Assign positions to committed events, and return how many; MOST_AT_ONCE means that there may be more.

    The lock comes first, so that the query sees all events committed before it.
    """
    newest = connection.execute(select(event_positions.c.newest).with_for_update()).scalar_one()
    waiting = (
        select(events.c.sequence)
        .where(events.c.position.is_(None))
        .order_by(events.c.sequence)
        .limit(MOST_AT_ONCE)
    )
    places = [
        {"event": event, "place": place}
        for place, event in enumerate(connection.scalars(waiting), start=newest + 1)
    ]
    assert len(places) <= MOST_AT_ONCE
    if places:
        statement = update(events).where(events.c.sequence == bindparam("event"))
        connection.execute(statement.values(position=bindparam("place")), places)
        connection.execute(update(event_positions).values(newest=newest + len(places)))
    return len(places)


def page(connection: Connection, wanted: EventFilter, seek: Seek[int]) -> list[EventRow]:
    """Numbered events in their order; `sequence` is their position."""
    query = wanted.restrict(select(events).where(events.c.position.is_not(None)))
    rows = connection.execute(seek.restrict(query, events.c.position)).mappings()
    return [_from_row(dict(row)) for row in rows]


def newest(connection: Connection) -> int:
    """Position of the newest numbered event; 0 before the first."""
    found: int = connection.execute(select(event_positions.c.newest)).scalar_one()
    return found


Newest = tuple[Literal["progress", "preparation"], dict[str, object]]


def progress(connection: Connection, wanted: Iterable[str]) -> dict[str, Newest]:
    """By job, the progress of its current attempt, or of the preparation of its rows before the first."""
    columns = (jobs.c.id, jobs.c.progress, jobs.c.prepare_progress)
    found: dict[str, Newest] = {}
    for job, attempt, preparation in connection.execute(
        select(*columns).where(jobs.c.id.in_(list(wanted)))
    ):
        if attempt is not None:
            found[job] = ("progress", attempt)
        elif preparation is not None:
            found[job] = ("preparation", preparation)
    return found


def forget_before(connection: Connection, moment: datetime, limit: int) -> int:
    """Remove up to `limit` events older than `moment`, and return how many."""
    old = select(events.c.sequence).where(events.c.created_at < moment).limit(limit)
    return connection.execute(delete(events).where(events.c.sequence.in_(old))).rowcount


def _from_row(row: dict[str, Any]) -> EventRow:
    position = row.pop("position")
    return EventRow(**{**row, "sequence": position})
