"""Webhooks: which events they get, and which instance sends to them.

A delivery is inserted in the transaction of its event, so none is lost and none is invented. The holder of the webhook's
lease sends it, one delivery of a webhook at a time.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from service.core.principal import EVERY_OWNER
from service.database.engine import Seek
from service.database.queries import deliveries as queue
from service.database.rows import Event
from service.database.tables import deliveries, webhooks

_ABOUT = ("model", "dataset", "job", "version")


@dataclass(frozen=True)
class WebhookRow:
    """A webhook and the state of its deliveries; for one owner, or for all."""

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
        """Whether it gets events of all owners."""
        return self.owner == EVERY_OWNER

    def __repr__(self) -> str:
        """Without the secret and the URL, which may contain one."""
        return f"WebhookRow({self.id!r})"


def create(connection: Connection, webhook: WebhookRow) -> None:
    connection.execute(insert(webhooks).values(**vars(webhook) | {"kinds": list(webhook.kinds)}))


def find(connection: Connection, webhook: str) -> WebhookRow | None:
    found = _read(connection, select(webhooks).where(webhooks.c.id == webhook))
    return found[0] if found else None


def page(connection: Connection, owner: str | None, seek: Seek[str]) -> list[WebhookRow]:
    query = select(webhooks)
    if owner is not None:
        query = query.where(webhooks.c.owner == owner)
    return _read(connection, seek.restrict(query, webhooks.c.id))


def set_secret(connection: Connection, webhook: str, seen: str, secret: str) -> None:
    """Store the secret in another form, unless another instance has done so."""
    connection.execute(
        update(webhooks)
        .where(webhooks.c.id == webhook, webhooks.c.secret == seen)
        .values(secret=secret)
    )


def count(connection: Connection, owner: str) -> int:
    query = select(func.count()).select_from(webhooks).where(webhooks.c.owner == owner)
    return connection.execute(query).scalar_one()


def remove(connection: Connection, webhook: str) -> None:
    """Delete a webhook with its deliveries.

    It is locked first: a transaction that adds a delivery waits, and then finds no webhook.
    """
    connection.execute(select(webhooks.c.id).where(webhooks.c.id == webhook).with_for_update())
    connection.execute(delete(deliveries).where(deliveries.c.webhook == webhook))
    connection.execute(delete(webhooks).where(webhooks.c.id == webhook))


def notify(connection: Connection, event: Event, now: datetime) -> dict[str, int]:
    """Insert a delivery for each webhook that subscribes to the event.

    Return by owner for how many webhooks none was inserted, because MOST_WAITING messages of the owner were pending. The
    webhooks are locked against removal only, so that concurrent events do not wait for each other.
    """
    query = (
        select(webhooks)
        .where(
            webhooks.c.owner.in_((event.owner, EVERY_OWNER)),
            webhooks.c.disabled_at.is_(None),
            or_(webhooks.c.model.is_(None), webhooks.c.model == event.model),
        )
        .with_for_update(read=True, key_share=True)
    )
    room: dict[str, int] = {}
    skipped: Counter[str] = Counter()
    for webhook in _read(connection, query):
        if event.kind not in webhook.kinds:
            continue
        if webhook.owner not in room:
            room[webhook.owner] = queue.count_room(connection, webhook.owner)
        if room[webhook.owner] <= 0:
            skipped[webhook.owner] += 1
            continue
        queue.add(connection, webhook.id, payload(webhook, event, now), now)
        room[webhook.owner] -= 1
    return skipped


def payload(webhook: WebhookRow, event: Event, now: datetime) -> dict[str, object]:
    """The message, in the form that Standard Webhooks recommends.

    A webhook for all owners gets the owner of the event.
    """
    fields = ("owner", *_ABOUT) if webhook.every_owner else _ABOUT
    about = {name: getattr(event, name) or None for name in fields}
    return {
        "type": event.kind,
        "timestamp": now.isoformat(),
        "data": {**about, "details": dict(event.data)},
    }


def is_any_due(connection: Connection, now: datetime) -> bool:
    """Return whether `claim` has anything to do; writes nothing."""
    query = select(webhooks.c.id).where(_is_ready(now)).limit(1)
    return connection.execute(query).first() is not None


def claim(
    connection: Connection,
    sender: str,
    now: datetime,
    until: datetime,
    limit: int,
    most_of_one_owner: int,
) -> list[WebhookRow]:
    """Lease up to `limit` webhooks that have a delivery due.

    Owners with the fewest webhooks at this sender come first, and no owner gets more than `most_of_one_owner`; within an
    owner, those that were served longest ago come first. Of several senders that claim concurrently, each skips what
    another has locked.
    """
    chosen = _fair_share(connection, sender, now, limit, most_of_one_owner)
    free = (
        select(webhooks.c.id)
        .where(webhooks.c.id.in_(chosen), _is_ready(now))
        .with_for_update(skip_locked=True, key_share=True)
    )
    ids = list(connection.scalars(free))
    assert len(ids) <= limit
    connection.execute(
        update(webhooks).where(webhooks.c.id.in_(ids)).values(lease_owner=sender, lease_until=until)
    )
    return _read(connection, select(webhooks).where(webhooks.c.id.in_(ids)))


def _fair_share(
    connection: Connection, sender: str, now: datetime, limit: int, most_of_one_owner: int
) -> list[str]:
    """Ids of webhooks that are ready, alternating between owners."""
    is_mine = and_(webhooks.c.lease_owner == sender, webhooks.c.lease_until > now)
    of_owner = select(webhooks.c.owner, func.count()).where(is_mine).group_by(webhooks.c.owner)
    leased: Counter[str] = Counter(dict(connection.execute(of_owner).all()))
    longest_ago = webhooks.c.lease_until.asc().nulls_first()
    turn = func.row_number().over(partition_by=webhooks.c.owner, order_by=longest_ago)
    ready = select(webhooks.c.id, webhooks.c.owner, turn.label("turn")).where(_is_ready(now))
    ready = ready.order_by(turn, longest_ago).limit(limit * most_of_one_owner)
    # Each webhook that is leased already moves the owner back by one.
    found = sorted(connection.execute(ready), key=lambda row: leased[row.owner] + row.turn)
    within = [row.id for row in found if leased[row.owner] + row.turn <= most_of_one_owner]
    return within[:limit]


def release(connection: Connection, webhook: str, sender: str, now: datetime) -> None:
    """Release the lease, if this sender still holds it."""
    connection.execute(
        update(webhooks)
        .where(webhooks.c.id == webhook, webhooks.c.lease_owner == sender)
        .values(lease_owner=None, lease_until=now)
    )


def disable(connection: Connection, webhook: str, reason: str, now: datetime) -> None:
    """Disable a webhook and abandon its pending deliveries."""
    connection.execute(
        update(webhooks)
        .where(webhooks.c.id == webhook, webhooks.c.disabled_at.is_(None))
        .values(disabled_at=now, disabled_reason=reason)
    )
    queue.abandon(connection, webhook, reason, now)


def _is_ready(now: datetime) -> ColumnElement[bool]:
    """Condition: a delivery is due, no instance sends to it, and it does not pause after a failure."""
    due = select(deliveries.c.id).where(
        deliveries.c.webhook == webhooks.c.id, queue.is_open(), deliveries.c.next_at <= now
    )
    return and_(
        webhooks.c.disabled_at.is_(None),
        or_(webhooks.c.rests_until.is_(None), webhooks.c.rests_until <= now),
        or_(webhooks.c.lease_until.is_(None), webhooks.c.lease_until <= now),
        due.exists(),
    )


def _read(connection: Connection, query: Select[tuple[object, ...]]) -> list[WebhookRow]:
    rows = connection.execute(query).mappings()
    return [WebhookRow(**{**row, "kinds": tuple(row["kinds"])}) for row in rows]
