"""Attempts of jobs, and their progress over time.

Of an attempt's progress, the newest in each interval is kept. The interval begins with the pause between two reports of
an attempt, and doubles whenever there are MOST_POINTS intervals: so a curve has the same number of points, evenly
spaced, whether an attempt takes a minute or a week, and an update reads no other point.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.contract.job import Progress
from service.database.engine import Seek, in_chunks, one
from service.database.tables import attempts, progress_points

MOST_POINTS = 300
# An attempt reports its progress at most this often.
FIRST_INTERVAL = 0.5

AttemptOutcome = Literal["candidate", "measured", "lost", "failed", "cancelled"]

# By the state that a job enters when its attempt ends.
_OUTCOMES: dict[JobState, AttemptOutcome] = {
    JobState.GATING: "candidate",
    JobState.EVALUATED: "measured",
    JobState.PREPARED: "lost",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}

# Fields of Progress that a point has.
_FIGURES = {
    *(
        "phase",
        "updates_done",
        "updates_total",
        "rows_done",
        "rows_total",
        "loss",
        "rows_per_second",
    ),
    *("gradient_norm", "removed_share", "drift"),
}


@dataclass(frozen=True)
class AttemptRow:
    """An attempt of a job."""

    job: str
    number: int
    parent_version: int | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    outcome: AttemptOutcome | None
    reason: FailureReason | None
    message: str | None
    progress_since: datetime | None
    progress_interval: float | None


@dataclass(frozen=True)
class ProgressPoint:
    """Progress of an attempt at a time of this service's clock. `figures` has fields of Progress."""

    at: datetime
    figures: dict[str, object]


def begin(connection: Connection, job: str, number: int, parent: int | None, now: datetime) -> None:
    assert number >= 1
    values = {"job": job, "number": number, "parent_version": parent, "created_at": now}
    connection.execute(insert(attempts).values(values))


def set_started(connection: Connection, job: str, number: int, now: datetime) -> None:
    """Record when an attempt was first seen running, unless that was recorded."""
    statement = update(attempts).where(*_is(job, number), attempts.c.started_at.is_(None))
    connection.execute(statement.values(started_at=now))


def end(
    connection: Connection, job: str, number: int, state: JobState, changes: Mapping[str, object]
) -> None:
    """Record the end of an attempt: the state that its job enters, and the changes of the job's row."""
    statement = update(attempts).where(*_is(job, number), attempts.c.ended_at.is_(None))
    why = {name: changes.get(name) for name in ("reason", "message")}
    ended_at = changes["state_changed_at"]
    connection.execute(statement.values(ended_at=ended_at, outcome=_OUTCOMES[state], **why))


def page(connection: Connection, job: str, seek: Seek[int]) -> list[AttemptRow]:
    query = seek.restrict(select(attempts).where(attempts.c.job == job), attempts.c.number)
    return [AttemptRow(**row) for row in connection.execute(query).mappings()]


def find(connection: Connection, job: str, number: int) -> AttemptRow | None:
    return one(connection, select(attempts).where(*_is(job, number)), lambda row: AttemptRow(**row))


def points(connection: Connection, job: str, number: int) -> list[ProgressPoint]:
    """Progress of an attempt over time, oldest first; the last one is the newest."""
    query = select(progress_points.c.at, progress_points.c.figures).where(*_are_of(job, number))
    rows = connection.execute(query.order_by(progress_points.c.interval))
    return [ProgressPoint(at, figures) for at, figures in rows]


def add_points(
    connection: Connection, reports: Sequence[tuple[str, int, Progress]], now: datetime
) -> None:
    """Keep progress of attempts (job, number) as the newest of their intervals.

    The caller's transaction has locked the jobs.
    """
    seen = _clocks(connection, {job for job, _, _ in reports})
    points = []
    for job, number, progress in reports:
        if (job, number) not in seen:
            # An attempt of a database that was rebuilt.
            continue
        interval = _interval(connection, job, number, seen[job, number], now)
        figures = progress.model_dump(mode="json", include=_FIGURES, exclude_none=True)
        points.append(
            {"job": job, "attempt": number, "interval": interval, "at": now, "figures": figures}
        )
    if points:
        is_postgresql = connection.dialect.name == "postgresql"
        statement = (postgresql.insert if is_postgresql else sqlite.insert)(progress_points)
        new = {"at": statement.excluded.at, "figures": statement.excluded.figures}
        key = progress_points.primary_key.columns
        connection.execute(statement.on_conflict_do_update(index_elements=key, set_=new), points)


_Clock = tuple[datetime | None, float | None]


def _clocks(connection: Connection, jobs: Collection[str]) -> dict[tuple[str, int], _Clock]:
    """Return the time of the first progress and the length of an interval, for all attempts of these jobs."""
    columns = (attempts.c.progress_since, attempts.c.progress_interval)
    found: dict[tuple[str, int], _Clock] = {}
    for some in in_chunks(sorted(jobs)):
        query = select(attempts.c.job, attempts.c.number, *columns)
        rows = connection.execute(query.where(attempts.c.job.in_(some)))
        found |= {(job, number): (since, interval) for job, number, since, interval in rows}
    return found


def _interval(connection: Connection, job: str, number: int, clock: _Clock, now: datetime) -> int:
    """The number of the interval that is now; intervals that became longer are stored."""
    since, interval = clock[0] or now, clock[1] or FIRST_INTERVAL
    # Clocks of instances differ.
    age = max(0.0, (now - since).total_seconds())
    widened = interval
    while age >= MOST_POINTS * widened:
        widened *= 2
    if clock[0] is None or widened != interval:
        values = {"progress_since": since, "progress_interval": widened}
        connection.execute(update(attempts).where(*_is(job, number)).values(values))
    if widened != interval:
        _thin_out(connection, job, number, since, widened)
    assert 0 <= age / widened < MOST_POINTS
    return int(age / widened)


def forget_progress(connection: Connection, job: str) -> None:
    connection.execute(delete(progress_points).where(progress_points.c.job == job))


def _thin_out(
    connection: Connection, job: str, number: int, since: datetime, interval: float
) -> None:
    """Keep the newest point of each of the longer intervals."""
    kept = {
        int(max(0.0, (point.at - since).total_seconds()) / interval): point
        for point in points(connection, job, number)
    }
    connection.execute(delete(progress_points).where(*_are_of(job, number)))
    rows = [
        {"job": job, "attempt": number, "interval": place, **vars(point)}
        for place, point in kept.items()
    ]
    if rows:
        connection.execute(insert(progress_points), rows)


def _is(job: str, number: int) -> tuple[ColumnElement[bool], ...]:
    return (attempts.c.job == job, attempts.c.number == number)


def _are_of(job: str, number: int) -> tuple[ColumnElement[bool], ...]:
    return (progress_points.c.job == job, progress_points.c.attempt == number)
