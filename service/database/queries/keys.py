"""Queries about keys. Of a key's secret the table has the digest alone."""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, RowMapping, and_, case, func, insert, or_, select, update

from service.database.tables import api_keys
from service.principal import Scope


@dataclass(frozen=True)
class KeyRecord:
    """A key: whose it is, what it permits, and when it was last used (to the minute)."""

    id: str
    owner: str
    name: str
    scopes: frozenset[Scope]
    secret_sha256: str = field(repr=False)
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def create(connection: Connection, key: KeyRecord) -> None:
    """Insert a key. Raises WriteConflict if its id is taken."""
    values = {**vars(key), "scopes": sorted(key.scopes)}
    connection.execute(insert(api_keys).values(**values))


def find(connection: Connection, key: str) -> KeyRecord | None:
    """The key of that id, also a revoked one."""
    row = connection.execute(select(api_keys).where(api_keys.c.id == key)).mappings().one_or_none()
    return None if row is None else _record(row)


def digest_of(connection: Connection, key: str) -> str | None:
    """What is stored of the key's secret. Alone, so that a key takes no longer than none."""
    query = select(api_keys.c.secret_sha256).where(api_keys.c.id == key)
    return connection.execute(query).scalar_one_or_none()


def page(
    connection: Connection, owner: str | None, after: str | None, limit: int
) -> list[KeyRecord]:
    """Keys in the order of their ids, behind `after`; also those that are valid no more."""
    query = select(api_keys).order_by(api_keys.c.id)
    if owner is not None:
        query = query.where(api_keys.c.owner == owner)
    if after is not None:
        query = query.where(api_keys.c.id > after)
    return [_record(row) for row in connection.execute(query.limit(limit)).mappings()]


def count(connection: Connection, owner: str, now: datetime, made_after: datetime) -> int:
    """How many keys of the owner are valid, or were made after that moment."""
    is_current = and_(
        api_keys.c.revoked_at.is_(None),
        or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now),
    )
    query = select(func.count()).where(
        api_keys.c.owner == owner, or_(is_current, api_keys.c.created_at > made_after)
    )
    return connection.execute(query).scalar_one()


def has_any(connection: Connection) -> bool:
    """Whether a key was ever made."""
    return connection.execute(select(api_keys.c.id).limit(1)).first() is not None


def valid(connection: Connection, now: datetime) -> list[KeyRecord]:
    """Those that are neither revoked nor expired, by id."""
    is_current = or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now)
    query = select(api_keys).where(api_keys.c.revoked_at.is_(None), is_current)
    return [_record(row) for row in connection.execute(query.order_by(api_keys.c.id)).mappings()]


def changes(connection: Connection, now: datetime) -> int:
    """How often a key was made, revoked or expired: it grows when `valid` becomes another list.

    Rows are never removed, and what was revoked or expired stays so.
    """
    expired = func.sum(case((api_keys.c.expires_at <= now, 1), else_=0))
    query = select(func.count(), func.count(api_keys.c.revoked_at), expired)
    counts = connection.execute(query.select_from(api_keys)).one()
    return sum(count or 0 for count in counts)


def set_revoked(connection: Connection, key: str, now: datetime) -> None:
    """It is valid no more; the moment of the first time stays."""
    connection.execute(
        update(api_keys)
        .where(api_keys.c.id == key, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=now)
    )


def set_used(connection: Connection, key: str, now: datetime, unless_since: datetime) -> None:
    """It was used now; nothing is written if another service has said so since that moment."""
    is_old = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at <= unless_since)
    connection.execute(
        update(api_keys).where(api_keys.c.id == key, is_old).values(last_used_at=now)
    )


def _record(row: RowMapping) -> KeyRecord:
    values = dict(row)
    values["scopes"] = frozenset(Scope(scope) for scope in values["scopes"])
    return KeyRecord(**values)
