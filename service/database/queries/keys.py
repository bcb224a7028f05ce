"""API keys. Of the secret, the table has the digest alone."""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, RowMapping, Table, and_, case, func, insert, or_, select, update

from cmcl.contract.api.access import Scope
from service.database.engine import Seek, one
from service.database.tables import api_keys


@dataclass(frozen=True)
class KeyRow:
    """A key: its owner, its scopes, and when it was last used (to the minute)."""

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
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def create(connection: Connection, key: KeyRow) -> None:
    """Insert a key. Raises WriteConflict if its id is taken."""
    values = {**vars(key), "scopes": sorted(key.scopes)}
    connection.execute(insert(api_keys).values(**values))


def find(connection: Connection, key: str) -> KeyRow | None:
    """The key of that id, also a revoked one."""
    return one(connection, select(api_keys).where(api_keys.c.id == key), _from_row)


def digest_of(connection: Connection, key: str) -> str | None:
    """The digest of the key's secret. A query of its own, so that an existing key takes no longer than none."""
    query = select(api_keys.c.secret_sha256).where(api_keys.c.id == key)
    return connection.execute(query).scalar_one_or_none()


def page(connection: Connection, owner: str | None, seek: Seek[str]) -> list[KeyRow]:
    """Keys by id, also expired and revoked ones."""
    query = select(api_keys)
    if owner is not None:
        query = query.where(api_keys.c.owner == owner)
    rows = connection.execute(seek.restrict(query, api_keys.c.id)).mappings()
    return [_from_row(row) for row in rows]


def count(connection: Connection, owner: str, now: datetime, made_after: datetime) -> int:
    """Count keys of the owner that are valid, or were created after `made_after`."""
    is_current = and_(
        api_keys.c.revoked_at.is_(None),
        or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now),
    )
    query = select(func.count()).where(
        api_keys.c.owner == owner, or_(is_current, api_keys.c.created_at > made_after)
    )
    return connection.execute(query).scalar_one()


def has_any(connection: Connection) -> bool:
    return connection.execute(select(api_keys.c.id).limit(1)).first() is not None


def valid(connection: Connection, now: datetime) -> list[KeyRow]:
    """Valid keys, by id."""
    is_current = or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now)
    query = select(api_keys).where(api_keys.c.revoked_at.is_(None), is_current)
    return [_from_row(row) for row in connection.execute(query.order_by(api_keys.c.id)).mappings()]


def changes(connection: Connection, now: datetime) -> int:
    """Count creations, revocations and expirations: the number grows when `valid` changes.

    Rows are never removed, and a revoked or expired key stays so.
    """
    expired = func.sum(case((api_keys.c.expires_at <= now, 1), else_=0))
    query = select(func.count(), func.count(api_keys.c.revoked_at), expired)
    counts = connection.execute(query.select_from(api_keys)).one()
    return sum(count or 0 for count in counts)


def set_revoked(connection: Connection, name: str, now: datetime, table: Table = api_keys) -> None:
    """Revoke a key, or a row of another table; the time of the first revocation is kept."""
    statement = update(table).where(table.c.id == name, table.c.revoked_at.is_(None))
    connection.execute(statement.values(revoked_at=now))


def set_used(
    connection: Connection,
    name: str,
    now: datetime,
    unless_since: datetime,
    table: Table = api_keys,
) -> None:
    """Record the use of a key, or a row of another table, unless another instance has done so since `unless_since`."""
    is_old = or_(table.c.last_used_at.is_(None), table.c.last_used_at <= unless_since)
    connection.execute(update(table).where(table.c.id == name, is_old).values(last_used_at=now))


def _from_row(row: RowMapping) -> KeyRow:
    values = dict(row)
    values["scopes"] = frozenset(Scope(scope) for scope in values["scopes"])
    return KeyRow(**values)
