"""Pre-flights. Every move is a compare-and-set, as for jobs."""

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
    """queued -> running -> done | failed; back to queued once, if the attempt was lost."""

    QUEUED = "queued"  # its attempt has a number and is to be submitted
    RUNNING = "running"  # the launcher has accepted the attempt
    DONE = "done"  # it has a result
    FAILED = "failed"  # it has no result, and `message` says why


@dataclass(frozen=True)
class PreflightRecord:
    """A pre-flight as it was read; a move succeeds only if its revision is unchanged."""

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
    """A pre-flight as it is posted."""

    id: str
    owner: str
    model: str
    version: int
    request: dict[str, object]


def create(connection: Connection, row: NewRow, now: datetime) -> None:
    """Insert a queued pre-flight with the number of its first attempt."""
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
    """Pre-flights of a model in the order of their arrival, after `after`."""
    query = select(preflights).where(preflights.c.model == model)
    if after is not None:
        query = query.where(preflights.c.sequence > after)
    rows = connection.execute(query.order_by(preflights.c.sequence).limit(limit)).mappings()
    return [_record(row) for row in rows]


def current(connection: Connection, limit: int, of_one_owner: int) -> list[PreflightRecord]:
    """The oldest unfinished pre-flight of each model: at most `limit`, and `of_one_owner` per owner.

    Later arrivals do not change which ones are returned.
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
    """Move it if its revision is unchanged. False if another replica moved it first."""
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
    """Move it to a final state if its revision is unchanged, and emit the event with `data`."""
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
    """Set the message that says what it waits for."""
    connection.execute(
        update(preflights)
        .where(preflights.c.id == seen.id, preflights.c.revision == seen.revision)
        .values(message=message)
    )


def ended_before(connection: Connection, moment: datetime, limit: int) -> list[PreflightRecord]:
    """Pre-flights that ended before that time: remove runs/<id>/, then `forget` them."""
    query = select(preflights).where(preflights.c.finished_at < moment)
    rows = connection.execute(query.order_by(preflights.c.finished_at).limit(limit)).mappings()
    return [_record(row) for row in rows]


def forget(connection: Connection, preflight: str) -> None:
    """Remove a pre-flight."""
    connection.execute(delete(preflights).where(preflights.c.id == preflight))


def _record(row: RowMapping) -> PreflightRecord:
    values = dict(row)
    values["state"] = PreflightState(values["state"])
    if values["result"] is not None:
        values["result"] = Outlook.model_validate(values["result"])
    return PreflightRecord(**values)
