"""Queries about the answers to requests with an idempotency key."""

from datetime import datetime

from sqlalchemy import Connection, delete, insert, select

from service.database.rows import AnswerRecord
from service.database.tables import answers


def find(connection: Connection, owner: str, key: str, route: str) -> AnswerRecord | None:
    """What the owner's key was answered on that route."""
    query = select(
        answers.c.fingerprint, answers.c.status, answers.c.location, answers.c.body
    ).where(answers.c.owner == owner, answers.c.key == key, answers.c.route == route)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else AnswerRecord(**row)


def remember(
    connection: Connection,
    owner: str,
    key: str,
    route: str,
    answer: AnswerRecord,
    now: datetime,
) -> None:
    """Keep an answer. Raises WriteConflict if the key got another one meanwhile."""
    connection.execute(
        insert(answers).values(owner=owner, key=key, route=route, created_at=now, **vars(answer))
    )


def forget_before(connection: Connection, moment: datetime) -> None:
    """Remove answers that are older than that."""
    connection.execute(delete(answers).where(answers.c.created_at < moment))
