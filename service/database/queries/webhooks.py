"""Queries about webhooks, and about what is to be delivered to them.

A delivery is written in the transaction of its event: none is lost, none is made up. It is sent by
whoever holds the lease of its webhook, one delivery of a webhook at a time.
"""

import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from service.database.rows import Happening
from service.database.tables import deliveries, webhooks
from service.principal import EVERY_OWNER

# Messages of one owner that wait to be delivered. More are given up when they are written: receivers
# that take nothing for days would fill the table otherwise, and every event waits for its messages.
MOST_WAITING = 10_000
_ABOUT = ("model", "dataset", "job", "version")


@dataclass(frozen=True)
class WebhookRecord:
    """Where somebody wants to be told of events, and how that goes; of all owners, or of one."""

    id: str
    owner: str
    url: str
    secret: str
    kinds: tuple[str, ...]
    model: str | None
    created_at: datetime
    disabled_at: datetime | None = None
    disabled_reason: str | None = None
    failing_since: datetime | None = None
    rests_until: datetime | None = None
    lease_owner: str | None = None
    lease_until: datetime | None = None

    @property
    def every_owner(self) -> bool:
        """Whether it is told of the whole deployment."""
        return self.owner == EVERY_OWNER

    def __repr__(self) -> str:
        """Without the secret and the address, which may hold one."""
        return f"WebhookRecord({self.id!r})"


@dataclass(frozen=True)
class DeliveryRecord:
    """One message to one webhook. Its id stays the same however often it is sent."""

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
    """How one attempt at a delivery ended: an HTTP status, or why there is none."""

    at: datetime
    status: int | None = None
    error: str | None = None
    # When to try again, and until when to leave the whole webhook alone. None: never again.
    again_at: datetime | None = None
    rests_until: datetime | None = None


def create(connection: Connection, webhook: WebhookRecord) -> None:
    """Insert a webhook."""
    connection.execute(insert(webhooks).values(**vars(webhook) | {"kinds": list(webhook.kinds)}))


def find(connection: Connection, webhook: str) -> WebhookRecord | None:
    """The webhook of that id."""
    found = _read(connection, select(webhooks).where(webhooks.c.id == webhook))
    return found[0] if found else None


def page(
    connection: Connection, owner: str | None, after: str | None, limit: int
) -> list[WebhookRecord]:
    """Webhooks in the order of their ids, behind `after`."""
    query = select(webhooks).order_by(webhooks.c.id).limit(limit)
    if owner is not None:
        query = query.where(webhooks.c.owner == owner)
    if after is not None:
        query = query.where(webhooks.c.id > after)
    return _read(connection, query)


def set_secret(connection: Connection, webhook: str, seen: str, secret: str) -> None:
    """Store the secret in another form, unless somebody else has done so."""
    connection.execute(
        update(webhooks)
        .where(webhooks.c.id == webhook, webhooks.c.secret == seen)
        .values(secret=secret)
    )


def count(connection: Connection, owner: str) -> int:
    """How many webhooks the owner has."""
    query = select(func.count()).select_from(webhooks).where(webhooks.c.owner == owner)
    return connection.execute(query).scalar_one()


def remove(connection: Connection, webhook: str) -> None:
    """Delete it, with all of its deliveries.

    It is locked first: a transaction that wants to tell it something waits, and then finds it gone.
    """
    connection.execute(select(webhooks.c.id).where(webhooks.c.id == webhook).with_for_update())
    connection.execute(delete(deliveries).where(deliveries.c.webhook == webhook))
    connection.execute(delete(webhooks).where(webhooks.c.id == webhook))


def notify(connection: Connection, happening: Happening, now: datetime) -> None:
    """Write a delivery for each webhook that wants to be told of it.

    The webhooks are locked against removal only, so that nobody waits for anybody who tells.
    """
    query = (
        select(webhooks)
        .where(
            webhooks.c.owner.in_((happening.owner, EVERY_OWNER)),
            webhooks.c.disabled_at.is_(None),
            or_(webhooks.c.model.is_(None), webhooks.c.model == happening.model),
        )
        .with_for_update(read=True, key_share=True)
    )
    for webhook in _read(connection, query):
        if happening.kind in webhook.kinds:
            add_delivery(connection, webhook, payload(webhook, happening, now), now)


def payload(webhook: WebhookRecord, happening: Happening, now: datetime) -> dict[str, object]:
    """The message, in the form that Standard Webhooks recommends.

    Whoever hears of all owners is told which one it is.
    """
    told = ("owner", *_ABOUT) if webhook.every_owner else _ABOUT
    about = {name: getattr(happening, name) or None for name in told}
    return {
        "type": happening.kind,
        "timestamp": now.isoformat(),
        "data": {**about, "details": dict(happening.data)},
    }


def add_delivery(
    connection: Connection, webhook: WebhookRecord, message: dict[str, object], now: datetime
) -> str:
    """Insert a delivery that is due at once; its id. It is given up if the owner has so many waiting."""
    delivery = f"dl-{uuid.uuid4().hex[:12]}"
    values = {"id": delivery, "webhook": webhook.id, "payload": message, "attempts": 0}
    if _has_waiting(connection, webhook.owner, MOST_WAITING):
        error = (
            f"{MOST_WAITING} messages of owner {webhook.owner!r} were waiting, which is the most"
        )
        values |= {"failed_at": now, "error": error}
    connection.execute(insert(deliveries).values(**values, next_at=now, created_at=now))
    return delivery


def _has_waiting(connection: Connection, owner: str, number: int) -> bool:
    """Whether so many messages of the owner's webhooks are not delivered yet; reads no more of them."""
    theirs = select(webhooks.c.id).where(webhooks.c.owner == owner)
    waiting = (
        select(deliveries.c.sequence)
        .where(deliveries.c.webhook.in_(theirs), _is_open())
        .offset(number - 1)
        .limit(1)
    )
    return connection.execute(waiting).first() is not None


def find_delivery(connection: Connection, delivery: str) -> DeliveryRecord | None:
    """The delivery of that id."""
    query = select(deliveries).where(deliveries.c.id == delivery)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else DeliveryRecord(**row)


def deliveries_page(
    connection: Connection, webhook: str, before: int | None, limit: int
) -> list[DeliveryRecord]:
    """Deliveries of a webhook, the newest first, older than `before`."""
    query = select(deliveries).where(deliveries.c.webhook == webhook)
    if before is not None:
        query = query.where(deliveries.c.sequence < before)
    rows = connection.execute(query.order_by(deliveries.c.sequence.desc()).limit(limit)).mappings()
    return [DeliveryRecord(**row) for row in rows]


def is_any_due(connection: Connection, now: datetime) -> bool:
    """Whether `claim` would find anything: a look that writes nothing."""
    query = select(webhooks.c.id).where(_is_ready(now)).limit(1)
    return connection.execute(query).first() is not None


def claim(
    connection: Connection,
    sender: str,
    now: datetime,
    until: datetime,
    limit: int,
    most_of_one_owner: int,
) -> list[WebhookRecord]:
    """Lease webhooks that have something due, `limit` at most.

    Owners that the sender serves fewest webhooks of come first, and no owner gets more than
    `most_of_one_owner` of its places; of an owner, those that were served longest ago come first. Of
    several senders that claim at once, each passes over what another has locked.
    """
    chosen = _fair_share(connection, sender, now, limit, most_of_one_owner)
    free = (
        select(webhooks.c.id)
        .where(webhooks.c.id.in_(chosen), _is_ready(now))
        .with_for_update(skip_locked=True, key_share=True)
    )
    ids = list(connection.scalars(free))
    connection.execute(
        update(webhooks).where(webhooks.c.id.in_(ids)).values(lease_owner=sender, lease_until=until)
    )
    return _read(connection, select(webhooks).where(webhooks.c.id.in_(ids)))


def _fair_share(
    connection: Connection, sender: str, now: datetime, limit: int, most_of_one_owner: int
) -> list[str]:
    """Ids of webhooks that are ready, one owner after another."""
    is_mine = and_(webhooks.c.lease_owner == sender, webhooks.c.lease_until > now)
    of_owner = select(webhooks.c.owner, func.count()).where(is_mine).group_by(webhooks.c.owner)
    held = Counter(dict(connection.execute(of_owner).all()))
    longest_ago = webhooks.c.lease_until.asc().nulls_first()
    turn = func.row_number().over(partition_by=webhooks.c.owner, order_by=longest_ago)
    ready = select(webhooks.c.id, webhooks.c.owner, turn.label("turn")).where(_is_ready(now))
    ready = ready.order_by(turn, longest_ago).limit(limit * most_of_one_owner)
    found = connection.execute(ready).all()
    # A turn later for each webhook that is served already.
    found.sort(key=lambda row: held[row.owner] + row.turn)
    within = [row.id for row in found if held[row.owner] + row.turn <= most_of_one_owner]
    return within[:limit]


def release(connection: Connection, webhook: str, sender: str, now: datetime) -> None:
    """Give the lease back, if it still is this sender's."""
    connection.execute(
        update(webhooks)
        .where(webhooks.c.id == webhook, webhooks.c.lease_owner == sender)
        .values(lease_owner=None, lease_until=now)
    )


def next_due(connection: Connection, webhook: str, now: datetime) -> DeliveryRecord | None:
    """The delivery of a webhook that has been due longest."""
    query = (
        select(deliveries)
        .where(deliveries.c.webhook == webhook, _is_open(), deliveries.c.next_at <= now)
        .order_by(deliveries.c.next_at, deliveries.c.sequence)
        .limit(1)
    )
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else DeliveryRecord(**row)


def record_success(connection: Connection, seen: DeliveryRecord, attempt: Attempt) -> bool:
    """It was taken. False if somebody else has recorded this attempt, or it is gone."""
    changes = {"delivered_at": attempt.at, "error": None}
    if not _record_attempt(connection, seen, attempt, changes):
        return False
    connection.execute(
        update(webhooks)
        .where(webhooks.c.id == seen.webhook, webhooks.c.failing_since.is_not(None))
        .values(failing_since=None, rests_until=None)
    )
    return True


def record_failure(connection: Connection, seen: DeliveryRecord, attempt: Attempt) -> bool:
    """It was not taken. False if somebody else has recorded this attempt, or it is gone."""
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


def disable(connection: Connection, webhook: str, reason: str, now: datetime) -> None:
    """Send it nothing any more; what waits for it is given up."""
    connection.execute(
        update(webhooks)
        .where(webhooks.c.id == webhook, webhooks.c.disabled_at.is_(None))
        .values(disabled_at=now, disabled_reason=reason)
    )
    connection.execute(
        update(deliveries)
        .where(deliveries.c.webhook == webhook, _is_open())
        .values(failed_at=now, error=_reason_or(reason))
    )


def forget_before(connection: Connection, moment: datetime, limit: int) -> int:
    """Remove some deliveries that are older than that; how many."""
    old = select(deliveries.c.sequence).where(deliveries.c.created_at < moment).limit(limit)
    return connection.execute(delete(deliveries).where(deliveries.c.sequence.in_(old))).rowcount


def _reason_or(reason: str) -> ColumnElement[str]:
    """The error that is known already, or else why nobody tries any more."""
    why = f"the webhook was disabled: {reason}"
    return case((deliveries.c.error.is_(None), why), else_=deliveries.c.error)


def _record_attempt(
    connection: Connection, seen: DeliveryRecord, attempt: Attempt, changes: Mapping[str, object]
) -> bool:
    """The fence: of two that sent the same delivery, the first one to say so counts."""
    statement = (
        update(deliveries)
        .where(deliveries.c.id == seen.id, deliveries.c.attempts == seen.attempts, _is_open())
        .values(attempts=seen.attempts + 1, status=attempt.status, **changes)
    )
    return connection.execute(statement).rowcount == 1


def _is_open() -> ColumnElement[bool]:
    return and_(deliveries.c.delivered_at.is_(None), deliveries.c.failed_at.is_(None))


def _is_ready(now: datetime) -> ColumnElement[bool]:
    """Something is due, nobody sends to it, and it does not rest after a failure."""
    due = select(deliveries.c.id).where(
        deliveries.c.webhook == webhooks.c.id, _is_open(), deliveries.c.next_at <= now
    )
    return and_(
        webhooks.c.disabled_at.is_(None),
        or_(webhooks.c.rests_until.is_(None), webhooks.c.rests_until <= now),
        or_(webhooks.c.lease_until.is_(None), webhooks.c.lease_until <= now),
        due.exists(),
    )


def _read(connection: Connection, query: Select[tuple[object, ...]]) -> list[WebhookRecord]:
    rows = connection.execute(query).mappings()
    return [WebhookRecord(**{**row, "kinds": tuple(row["kinds"])}) for row in rows]
