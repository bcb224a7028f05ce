"""Deliveries: one message to one webhook, retried until it is accepted or abandoned."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, insert, select, update

from service.database.engine import Seek, one
from service.database.rows import random_id
from service.database.tables import deliveries, webhooks

# Pending messages of one owner. More are dropped: receivers that are down for days would fill the table.
MOST_WAITING = 10_000


@dataclass(frozen=True)
class DeliveryRow:
    """One message to one webhook. Its id is equal for all attempts."""

    sequence: int
    id: str
    webhook: str
    payload: dict[str, object]
    attempts: int
    next_at: datetime
    status: int | None
    error: str | None
    created_at: datetime
    delivered_at: datetime | None
    failed_at: datetime | None


@dataclass(frozen=True)
class Attempt:
    """The outcome of one attempt: an HTTP status, or an error."""

    at: datetime
    status: int | None = None
    error: str | None = None
    # Time of the next attempt (None: never), and until when the whole webhook pauses.
    again_at: datetime | None = None
    rests_until: datetime | None = None


def add(connection: Connection, webhook: str, message: dict[str, object], now: datetime) -> str:
    """Insert a delivery that is due at once, and return its id. Check `count_room` first."""
    delivery = f"dl-{random_id()}"
    values = {"id": delivery, "webhook": webhook, "payload": message, "attempts": 0}
    connection.execute(insert(deliveries).values(**values, next_at=now, created_at=now))
    return delivery


def count_room(connection: Connection, owner: str) -> int:
    """Count how many more messages of the owner may wait. Reads at most MOST_WAITING index entries.

    On PostgreSQL, concurrent transactions do not see each other's messages and may exceed the limit.
    """
    theirs = select(webhooks.c.id).where(webhooks.c.owner == owner)
    waiting = (
        select(deliveries.c.webhook)
        .where(deliveries.c.webhook.in_(theirs), is_open())
        .limit(MOST_WAITING)
        .subquery()
    )
    return MOST_WAITING - connection.execute(select(func.count()).select_from(waiting)).scalar_one()


def find(connection: Connection, delivery: str) -> DeliveryRow | None:
    query = select(deliveries).where(deliveries.c.id == delivery)
    return one(connection, query, lambda row: DeliveryRow(**row))


def page(connection: Connection, webhook: str, seek: Seek[int]) -> list[DeliveryRow]:
    """Deliveries of a webhook in the order of their events."""
    query = select(deliveries).where(deliveries.c.webhook == webhook)
    rows = connection.execute(seek.restrict(query, deliveries.c.sequence)).mappings()
    return [DeliveryRow(**row) for row in rows]


def next_due(connection: Connection, webhook: str, now: datetime) -> DeliveryRow | None:
    """The delivery of a webhook that has been due longest."""
    query = (
        select(deliveries)
        .where(deliveries.c.webhook == webhook, is_open(), deliveries.c.next_at <= now)
        .order_by(deliveries.c.next_at, deliveries.c.sequence)
        .limit(1)
    )
    return one(connection, query, lambda row: DeliveryRow(**row))


def record_success(connection: Connection, seen: DeliveryRow, attempt: Attempt) -> bool:
    """Record that it was accepted. False if another instance recorded this attempt, or it was removed."""
    assert seen.delivered_at is None, "it was sent again"
    changes = {"delivered_at": attempt.at, "error": None}
    if not _record_attempt(connection, seen, attempt, changes):
        return False
    connection.execute(
        update(webhooks)
        .where(webhooks.c.id == seen.webhook, webhooks.c.failing_since.is_not(None))
        .values(failing_since=None, rests_until=None)
    )
    return True


def record_failure(connection: Connection, seen: DeliveryRow, attempt: Attempt) -> bool:
    """Record a failed attempt. False if another instance recorded it, or the delivery was removed."""
    assert attempt.again_at is None or attempt.again_at >= attempt.at
    then = {"next_at": attempt.again_at} if attempt.again_at else {"failed_at": attempt.at}
    if not _record_attempt(connection, seen, attempt, {**then, "error": attempt.error}):
        return False
    connection.execute(
        update(webhooks)
        .where(webhooks.c.id == seen.webhook)
        .values(
            failing_since=func.coalesce(webhooks.c.failing_since, attempt.at),
            rests_until=attempt.rests_until,
        )
    )
    return True


def abandon(connection: Connection, webhook: str, reason: str, now: datetime) -> None:
    connection.execute(
        update(deliveries)
        .where(deliveries.c.webhook == webhook, is_open())
        .values(failed_at=now, error=_reason_or(reason))
    )


def forget_before(connection: Connection, moment: datetime, limit: int) -> int:
    """Remove up to `limit` deliveries older than `moment`, and return how many."""
    old = select(deliveries.c.sequence).where(deliveries.c.created_at < moment).limit(limit)
    return connection.execute(delete(deliveries).where(deliveries.c.sequence.in_(old))).rowcount


def is_open() -> ColumnElement[bool]:
    """Condition: it is pending."""
    return and_(deliveries.c.delivered_at.is_(None), deliveries.c.failed_at.is_(None))


def _reason_or(reason: str) -> ColumnElement[str]:
    """The last error or, without one, why it was abandoned."""
    why = f"the webhook was disabled: {reason}"
    return case((deliveries.c.error.is_(None), why), else_=deliveries.c.error)


def _record_attempt(
    connection: Connection, seen: DeliveryRow, attempt: Attempt, changes: Mapping[str, object]
) -> bool:
    """The fence: of two that sent the same delivery, the first to record it counts."""
    statement = (
        update(deliveries)
        .where(deliveries.c.id == seen.id, deliveries.c.attempts == seen.attempts, is_open())
        .values(attempts=seen.attempts + 1, status=attempt.status, **changes)
    )
    return connection.execute(statement).rowcount == 1
