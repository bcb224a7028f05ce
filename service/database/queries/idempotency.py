"""Queries about the answers to requests with an idempotency key.

A row without a status is a claim: its request is being answered. It is known by the moment at which
it was made, so that whoever lost it to somebody else changes nothing.
"""

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select, update

from service.database.rows import KeyClaim, ResponseRecord
from service.database.tables import answers

Place = tuple[str, str, str]
"""Owner, key and route: what an answer is found by."""


def find(connection: Connection, place: Place) -> ResponseRecord | KeyClaim | None:
    """What the owner's key was answered on that route, or since when it is being answered."""
    row = connection.execute(select(answers).where(_at(place))).mappings().one_or_none()
    if row is None:
        return None
    if row["status"] is None:
        return KeyClaim(row["fingerprint"], row["created_at"])
    return ResponseRecord(row["fingerprint"], row["status"], row["location"], row["body"])


def remember(connection: Connection, place: Place, answer: ResponseRecord, now: datetime) -> None:
    """Keep an answer. Raises WriteConflict if the key got another one meanwhile."""
    connection.execute(insert(answers).values(**_columns(place), created_at=now, **vars(answer)))


def claim(connection: Connection, place: Place, mine: KeyClaim) -> None:
    """Say that the request is being answered. Raises WriteConflict if another one said so first."""
    connection.execute(insert(answers).values(**_columns(place), **vars(mine)))


def fulfil(connection: Connection, place: Place, claim: KeyClaim, answer: ResponseRecord) -> None:
    """The answer to what was claimed; nothing, if it was answered or given up meanwhile."""
    connection.execute(update(answers).where(_claimed(place, claim)).values(**vars(answer)))


def release(connection: Connection, place: Place, mine: KeyClaim) -> None:
    """The request was refused or failed: the key can be used again."""
    connection.execute(delete(answers).where(_claimed(place, mine)))


def _at(place: Place) -> ColumnElement[bool]:
    return and_(*(answers.c[name] == value for name, value in _columns(place).items()))


def _claimed(place: Place, claim: KeyClaim) -> ColumnElement[bool]:
    return and_(_at(place), answers.c.status.is_(None), answers.c.created_at == claim.created_at)


def _columns(place: Place) -> dict[str, str]:
    return dict(zip(("owner", "key", "route"), place, strict=True))
