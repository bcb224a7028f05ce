"""Stored responses to requests with an idempotency key.

A row without a status is a claim: its request is being processed. A claim is identified by the time at which it
was made, so a process that lost its claim to another one changes nothing.
"""

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select, update

from service.database.rows import KeyClaim, ResponseRow
from service.database.tables import responses

ScopedKey = tuple[str, str, str]
"""Owner, key and route."""


def find(connection: Connection, key: ScopedKey) -> ResponseRow | KeyClaim | None:
    """Return the stored response, the claim of a request that is being processed, or None."""
    row = connection.execute(select(responses).where(_at(key))).mappings().one_or_none()
    if row is None:
        return None
    if row["status"] is None:
        return KeyClaim(row["fingerprint"], row["created_at"])
    return ResponseRow(row["fingerprint"], row["status"], row["location"], row["body"])


def save(connection: Connection, key: ScopedKey, response: ResponseRow, now: datetime) -> None:
    """Store a response. Raises WriteConflict if another transaction stored one first."""
    connection.execute(insert(responses).values(**_columns(key), created_at=now, **vars(response)))


def claim(connection: Connection, key: ScopedKey, mine: KeyClaim) -> None:
    """Claim the key for a request. Raises WriteConflict if another transaction claimed it first."""
    connection.execute(insert(responses).values(**_columns(key), **vars(mine)))


def fulfil(connection: Connection, key: ScopedKey, claim: KeyClaim, response: ResponseRow) -> None:
    """Store the response of a claim; does nothing if the claim was fulfilled or released."""
    connection.execute(update(responses).where(_claimed(key, claim)).values(**vars(response)))


def release(connection: Connection, key: ScopedKey, mine: KeyClaim) -> None:
    """Release the claim of a request that was refused or failed: the key can be used again."""
    connection.execute(delete(responses).where(_claimed(key, mine)))


def _at(key: ScopedKey) -> ColumnElement[bool]:
    return and_(*(responses.c[name] == value for name, value in _columns(key).items()))


def _claimed(key: ScopedKey, claim: KeyClaim) -> ColumnElement[bool]:
    return and_(_at(key), responses.c.status.is_(None), responses.c.created_at == claim.created_at)


def _columns(key: ScopedKey) -> dict[str, str]:
    return dict(zip(("owner", "key", "route"), key, strict=True))
