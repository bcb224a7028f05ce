"""Queries about pre-flights. Every move is a compare-and-set, as of jobs."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from cmcl.contract.preflight import Outlook
from service.database.queries import events
from service.database.rows import Event
from service.database.tables import preflights


class PreflightState(StrEnum):
    """queued -> running -> done | failed; back to queued once, where the attempt was lost."""

    QUEUED = "queued"  # its attempt has a number and waits to be handed to the launcher
    RUNNING = "running"  # the launcher has accepted the attempt
    DONE = "done"  # it has an outlook
    FAILED = "failed"  # there is none, and `message` says why


@dataclass(frozen=True)
class PreflightRecord:
    """A pre-flight as it was seen; a move succeeds only if it still looks like this."""

    sequence: int
    id: str
    owner: str
    model: str
    version: int
    request: dict[str, object]
    state: PreflightState
    revision: int
    attempt: int
    result: Outlook | None
    message: str | None
    created_at: datetime
    state_changed_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True)
class NewRow:
    """What is known of a pre-flight when it is asked for."""

    id: str
    owner: str
    model: str
    version: int
    request: dict[str, object]


def create(connection: Connection, row: NewRow, now: datetime) -> None:
    """Insert one that waits for its turn. Its first attempt has its number already."""
    connection.execute(
        insert(preflights).values(
            state=PreflightState.QUEUED,
            revision=0,
            attempt=1,
            created_at=now,
            state_changed_at=now,
            **vars(row),
        )
    )


def find(connection: Connection, preflight: str) -> PreflightRecord | None:
    """The pre-flight of that id."""
    query = select(preflights).where(preflights.c.id == preflight)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _record(row)


def page(
    connection: Connection, model: str, after: int | None, limit: int
) -> list[PreflightRecord]:
    """Those of a model in the order of their arrival, behind `after`."""
    query = select(preflights).where(preflights.c.model == model)
    if after is not None:
        query = query.where(preflights.c.sequence > after)
    rows = connection.execute(query.order_by(preflights.c.sequence).limit(limit)).mappings()
    return [_record(row) for row in rows]


def current(connection: Connection, limit: int, of_one_owner: int) -> list[PreflightRecord]:
    """Of each model the oldest that is not finished: at most so many, and so many of one owner.

    Those that come later change nothing about who is among them.
    """
    oldest = (
        select(func.min(preflights.c.sequence))
        .where(preflights.c.finished_at.is_(None))
        .group_by(preflights.c.model)
    )
    place = func.row_number().over(partition_by=preflights.c.owner, order_by=preflights.c.sequence)
    placed = (
        select(preflights.c.sequence, place.label("place"))
        .where(preflights.c.sequence.in_(oldest))
        .subquery()
    )
    served = select(placed.c.sequence).where(placed.c.place <= of_one_owner)
    query = select(preflights).where(preflights.c.sequence.in_(served))
    rows = connection.execute(query.order_by(preflights.c.sequence).limit(limit)).mappings()
    return [_record(row) for row in rows]


def move(
    connection: Connection,
    seen: PreflightRecord,
    target: PreflightState,
    now: datetime,
    **changes: object,
) -> bool:
    """Move it if it still is as it was seen. False means that somebody else was faster."""
    statement = (
        update(preflights)
        .where(preflights.c.id == seen.id, preflights.c.revision == seen.revision)
        .values(state=target, state_changed_at=now, revision=seen.revision + 1, **changes)
    )
    return connection.execute(statement).rowcount == 1


def finish(
    connection: Connection,
    seen: PreflightRecord,
    target: PreflightState,
    now: datetime,
    changes: Mapping[str, object],
    data: Mapping[str, object],
) -> None:
    """Move it to a final state if it still is as it was seen, and emit the event with `data`."""
    if move(connection, seen, target, now, finished_at=now, **changes):
        finished = Event(
            kind=f"preflight.{target}",
            owner=seen.owner,
            model=seen.model,
            version=seen.version,
            data={"preflight": seen.id, **data},
        )
        events.emit(connection, finished, now)


def set_message(connection: Connection, seen: PreflightRecord, message: str) -> None:
    """Why it does not get on at the moment."""
    connection.execute(
        update(preflights)
        .where(preflights.c.id == seen.id, preflights.c.revision == seen.revision)
        .values(message=message)
    )


def ended_before(connection: Connection, moment: datetime, limit: int) -> list[PreflightRecord]:
    """Those that ended before that moment: remove runs/<id>/, then `forget` them."""
    query = select(preflights).where(preflights.c.finished_at < moment)
    rows = connection.execute(query.order_by(preflights.c.finished_at).limit(limit)).mappings()
    return [_record(row) for row in rows]


def forget(connection: Connection, preflight: str) -> None:
    """Remove one."""
    connection.execute(delete(preflights).where(preflights.c.id == preflight))


def _record(row: RowMapping) -> PreflightRecord:
    values = dict(row)
    values["state"] = PreflightState(values["state"])
    if values["result"] is not None:
        values["result"] = Outlook.model_validate(values["result"])
    return PreflightRecord(**values)
