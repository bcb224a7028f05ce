"""Stored responses to requests with an idempotency key."""

from datetime import datetime

from sqlalchemy import Connection, insert, select

from service.database.rows import ResponseRow
from service.database.tables import responses

ScopedKey = tuple[str, str, str]
"""Owner, key and route."""


def find(connection: Connection, key: ScopedKey) -> ResponseRow | None:
    query = select(responses).where(*(responses.c[name] == value for name, value in _columns(key)))
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        return None
    return ResponseRow(row["fingerprint"], row["status"], row["location"], row["body"])


def save(connection: Connection, key: ScopedKey, response: ResponseRow, now: datetime) -> None:
    """Store a response. Raises WriteConflict if another transaction stored one first."""
    values = {**dict(_columns(key)), **vars(response)}
    connection.execute(insert(responses).values(created_at=now, **values))


def _columns(key: ScopedKey) -> list[tuple[str, str]]:
    return list(zip(("owner", "key", "route"), key, strict=True))
