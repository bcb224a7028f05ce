"""Sessions of the page. Of the secret, the table has the digest alone."""

from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, or_, select

from cmcl.contract.api.access import Scope
from service.database.queries import keys
from service.database.tables import api_keys, sessions

Condition = ColumnElement[bool]

set_revoked = partial(keys.set_revoked, table=sessions)
set_used = partial(keys.set_used, table=sessions)


@dataclass(frozen=True)
class SessionRow:
    """A session: a browser that was signed in with a key or a token.

    `owner` is None for the operator. `parent` is the id of the key, None for the operator's key and for tokens.
    `is_parent_revoked` is as of when the row was read.
    """

    id: str
    owner: str | None
    name: str
    scopes: frozenset[Scope]
    secret_sha256: str = field(repr=False)
    parent: str | None
    agent: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    is_parent_revoked: bool = False

    def is_valid(self, now: datetime) -> bool:
        """Neither revoked, nor its key, nor expired."""
        return self.revoked_at is None and not self.is_parent_revoked and now < self.expires_at


def create(connection: Connection, session: SessionRow) -> None:
    values = {column.name: getattr(session, column.name) for column in sessions.columns}
    values["scopes"] = sorted(session.scopes)
    connection.execute(insert(sessions).values(**values))


def find(connection: Connection, session: str) -> SessionRow | None:
    """The session of that id, also a revoked one."""
    found = _read(connection, sessions.c.id == session, 1)
    return found[0] if found else None


def current(
    connection: Connection, where: Condition, now: datetime, limit: int
) -> list[SessionRow]:
    """Valid sessions that meet a condition (`of_owner`, `of_holder`), the operator's own first, then newest first."""
    is_current = and_(
        where,
        sessions.c.revoked_at.is_(None),
        sessions.c.expires_at > now,
        or_(sessions.c.parent.is_(None), api_keys.c.revoked_at.is_(None)),
    )
    return _read(connection, is_current, limit)


def of_owner(owner: str | None) -> Condition:
    """Condition: sessions of that owner; None: of all owners, and of the operator."""
    return sessions.c.id.is_not(None) if owner is None else sessions.c.owner == owner


def of_id(session: str) -> Condition:
    """Condition: the session of that id."""
    return sessions.c.id == session


def of_holder(owner: str | None, name: str, parent: str | None) -> Condition:
    """Condition: sessions that were started with that key, or by that holder of tokens."""
    return and_(
        sessions.c.owner.is_(None) if owner is None else sessions.c.owner == owner,
        sessions.c.name == name,
        sessions.c.parent.is_(None) if parent is None else sessions.c.parent == parent,
    )


def forget_before(connection: Connection, moment: datetime, limit: int) -> int:
    """Remove up to `limit` sessions that expired before that moment, and return how many."""
    old = select(sessions.c.id).where(sessions.c.expires_at < moment).limit(limit)
    return connection.execute(delete(sessions).where(sessions.c.id.in_(old))).rowcount


def _read(connection: Connection, where: Condition, limit: int) -> list[SessionRow]:
    revoked = api_keys.c.revoked_at.is_not(None).label("is_parent_revoked")
    query = (
        select(sessions, revoked)
        .outerjoin_from(sessions, api_keys, sessions.c.parent == api_keys.c.id)
        .where(where)
        .order_by(
            # The operator's own, before those of all owners.
            sessions.c.owner.is_not(None),
            sessions.c.created_at.desc(),
            sessions.c.id,
        )
        .limit(limit)
    )
    found = []
    for row in connection.execute(query).mappings():
        values = dict(row)
        values["scopes"] = frozenset(Scope(scope) for scope in values["scopes"])
        values["is_parent_revoked"] = bool(values["is_parent_revoked"])
        found.append(SessionRow(**values))
    return found
