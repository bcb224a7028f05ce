"""Jobs that wait for the scheduler, in the order of each owner, and the order in which owners were last served.

A job waits at two stages: for its preparation, and for its attempt. Every query reads an index of waiting or of running
jobs, at most one entry for each owner: a hundred thousand waiting jobs cost no more than ten.

The order within an owner is fixed when a job begins to wait: by that time, plus an offset of its priority. So a job of
low priority is passed by later ones for at most the difference of the offsets, and none waits indefinitely.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, Select, func, insert, or_, select, update

from cmcl.contract.methods import Priority
from service.core.principal import EVERY_OWNER
from service.core.states import JobState
from service.database.queries import jobs as moves
from service.database.rows import JobRow
from service.database.tables import admissions, jobs

# A job of high priority is ordered as if it had waited for an hour longer.
OFFSETS: Mapping[Priority, timedelta] = {
    "high": timedelta(hours=-1),
    "normal": timedelta(0),
    "low": timedelta(hours=1),
}


@dataclass(frozen=True)
class Stage:
    """Where jobs wait for the scheduler: the state in which they wait, and those in which they use its resources."""

    waiting: JobState
    running: tuple[JobState, ...]


PREPARATION = Stage(JobState.QUEUED, (JobState.PREPARING,))
TRAINING = Stage(JobState.PREPARED, (JobState.SUBMITTING, JobState.RUNNING))


def enqueue(
    connection: Connection, seen: JobRow, at: datetime, priority: Priority, message: str
) -> bool:
    """Let a job wait for the scheduler. False if it has moved."""
    statement = moves.as_seen(seen).values(eligible_at=at + OFFSETS[priority], message=message)
    return connection.execute(statement).rowcount == 1


def dequeue(connection: Connection, seen: JobRow) -> None:
    """Let a job no longer wait for the scheduler: it is not its turn among the jobs of its model."""
    connection.execute(moves.as_seen(seen).values(eligible_at=None, message=None))


def reorder(connection: Connection, model: str, before: Priority, now: Priority) -> None:
    """Change the order of the waiting jobs of a model whose priority has changed."""
    waiting = select(jobs.c.id, jobs.c.eligible_at).where(
        jobs.c.model == model, jobs.c.finished_at.is_(None), jobs.c.eligible_at.is_not(None)
    )
    for job, at in connection.execute(waiting).all():
        moved = at + OFFSETS[now] - OFFSETS[before]
        connection.execute(update(jobs).where(jobs.c.id == job).values(eligible_at=moved))


def is_any_waiting(connection: Connection, stage: Stage) -> bool:
    """Return whether a job waits for the scheduler at this stage."""
    query = select(jobs.c.id).where(*_waits_at(stage)).limit(1)
    return connection.execute(query).first() is not None


def lock(connection: Connection, stage: Stage) -> int:
    """Lock the stage until this transaction ends, and return the number of the newest admission.

    Raises WriteConflict if another instance concurrently made the first one.
    """
    is_newest = (admissions.c.state == stage.waiting, admissions.c.owner == EVERY_OWNER)
    query = select(admissions.c.number).where(*is_newest).with_for_update()
    number = connection.execute(query).scalar()
    if number is None:
        connection.execute(
            insert(admissions).values(state=stage.waiting, owner=EVERY_OWNER, number=0)
        )
    return number or 0


def set_served(connection: Connection, stage: Stage, owner: str, number: int) -> None:
    """Record the number of an owner's newest admission, with the stage locked."""
    for name in (owner, EVERY_OWNER):
        is_it = (admissions.c.state == stage.waiting, admissions.c.owner == name)
        changed = connection.execute(update(admissions).where(*is_it).values(number=number))
        if changed.rowcount == 0:
            row = {"state": stage.waiting, "owner": name, "number": number}
            connection.execute(insert(admissions).values(row))


def running(connection: Connection, stage: Stage) -> dict[str, int]:
    """Return the number of running jobs of each owner that has any."""
    query = (
        select(jobs.c.owner, func.count())
        .where(jobs.c.state.in_(stage.running))
        .group_by(jobs.c.owner)
    )
    return dict(connection.execute(query).all())


def waiting_owners(connection: Connection, stage: Stage) -> dict[str, int]:
    """Return the owners with waiting jobs, and the number of the newest admission of each; 0 if there was none.

    It steps from owner to owner through the index, independently of the number of their jobs.
    """
    owners = select(_next_owner(stage).scalar_subquery().label("owner")).cte(
        "owners", recursive=True
    )
    following = _next_owner(stage).where(jobs.c.owner > owners.c.owner).scalar_subquery()
    owners = owners.union_all(select(following).where(owners.c.owner.is_not(None)))
    served = (admissions.c.state == stage.waiting) & (admissions.c.owner == owners.c.owner)
    query = (
        select(owners.c.owner, func.coalesce(admissions.c.number, 0))
        .select_from(owners.outerjoin(admissions, served))
        .where(owners.c.owner.is_not(None))
    )
    return dict(connection.execute(query).all())


def _next_owner(stage: Stage) -> Select[tuple[str]]:
    return select(jobs.c.owner).where(*_waits_at(stage)).order_by(jobs.c.owner).limit(1)


def first(connection: Connection, stage: Stage, owner: str) -> JobRow | None:
    """Return the owner's waiting job that is to start next."""
    query = select(jobs).where(*_waits_at(stage), jobs.c.owner == owner)
    query = query.order_by(jobs.c.eligible_at, jobs.c.sequence).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else moves.from_row(row)


def ahead(connection: Connection, stage: Stage, seen: JobRow, most: int) -> int:
    """Count waiting jobs of the same owner that start before this one; at most `most`."""
    query = select(jobs.c.sequence).where(
        *_waits_at(stage),
        jobs.c.owner == seen.owner,
        jobs.c.eligible_at <= seen.eligible_at,
        or_(jobs.c.eligible_at < seen.eligible_at, jobs.c.sequence < seen.sequence),
    )
    counted = select(func.count()).select_from(query.limit(most).subquery())
    return connection.execute(counted).scalar_one()


def _waits_at(stage: Stage) -> tuple[ColumnElement[bool], ...]:
    return (jobs.c.eligible_at.is_not(None), jobs.c.state == stage.waiting)
