"""Which waiting jobs come next: of a model, and of all owners.

A model trains one job at a time, because each version starts from the one before; the first few that wait are prepared
meanwhile. At two stages, for its preparation and for its attempt, a job waits for the scheduler. Every query reads an index
of waiting or of running jobs, at most one entry for each owner: a hundred thousand waiting jobs cost no more than ten.

The order within an owner is fixed when a job begins to wait: by that time, plus an offset of its priority. So a job of
low priority is passed by later ones for at most the difference of the offsets, and none waits indefinitely.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Exists,
    Select,
    bindparam,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from cmcl.contract.api.jobs import JobState
from service.core.principal import EVERY_OWNER
from service.core.states import IN_FLIGHT
from service.database.engine import in_chunks, one
from service.database.queries import attempts
from service.database.queries import jobs as moves
from service.database.queries.models import is_pointer_unwritten
from service.database.rows import JobRow
from service.database.tables import admissions, jobs, models, versions

# Jobs of one model that are prepared at a time. Further ones stay queued.
MOST_OF_MODEL = 8
_LEARNS = jobs.c.kind != "evaluate"


def _first(*where: ColumnElement[bool]) -> Select[Any]:
    """The statement for the first job of a model, in the order of arrival, that meets the conditions."""
    query = select(jobs).where(jobs.c.model == bindparam("model"), *where)
    return query.order_by(jobs.c.sequence).limit(1)


_IN_TURN = (
    _first(jobs.c.state.in_(IN_FLIGHT - {JobState.HELD})),
    _first(jobs.c.state == JobState.PREPARED, ~_LEARNS),
    _first(jobs.c.state == JobState.HELD),
)
_TO_LEARN = _first(jobs.c.finished_at.is_(None), jobs.c.dry_run.is_(False), _LEARNS)


def current(connection: Connection, model: str) -> JobRow | None:
    """The job in flight, or else the first to learn in the order of arrival, if it is prepared: nothing else may be
    learned.

    A prepared evaluation comes before the next job to learn, and before one that is held. A few index lookups, so that
    ten thousand waiting jobs cost no more than one. A dry run and an evaluation learn nothing, so they keep no other job
    waiting while they are prepared.
    """
    for query in _IN_TURN:
        found = _found(connection, query, model)
        if found is not None:
            return found
    first = _found(connection, _TO_LEARN, model)
    return first if first is not None and first.state == JobState.PREPARED else None


def with_steps(
    connection: Connection, instance: str, names: Sequence[str] | None = None
) -> list[str]:
    """Return those of the models that the instance leases for which a step may be due; with `names`, of these alone.

    Not those whose jobs all wait for the scheduler or for their turn: of ten thousand models, most do.
    """
    leased = {"instance": instance}
    if names is None:
        return list(connection.scalars(_WITH_STEPS, leased))
    found: list[str] = []
    for some in in_chunks(names):
        found += connection.scalars(_WITH_STEPS.where(models.c.name.in_(some)), leased)
    return found


def _has_step() -> ColumnElement[bool]:
    of_model = jobs.c.model == models.c.name
    active = (*IN_FLIGHT, JobState.PREPARING)
    has_turn = (jobs.c.state == JobState.PREPARED, jobs.c.eligible_at.is_(None))
    first = (
        select(jobs.c.state, jobs.c.eligible_at)
        .where(of_model, jobs.c.finished_at.is_(None), jobs.c.dry_run.is_(False), _LEARNS)
        .order_by(jobs.c.sequence)
        .limit(1)
        .correlate(models)
        .subquery()
    )
    return or_(
        is_pointer_unwritten(),
        exists().where(versions.c.model == models.c.name, versions.c.stored_at.is_(None)),
        exists().where(of_model, jobs.c.state.in_(active)),
        exists().where(of_model, *has_turn, ~_LEARNS),
        # A job in flight is among the active ones.
        exists().where(first.c.state == JobState.PREPARED, first.c.eligible_at.is_(None)),
        _has_to_prepare(),
    )


def _has_to_prepare() -> Exists:
    """Condition: a queued job that may be prepared, and does not wait for the scheduler."""
    first = (
        select(jobs.c.state, jobs.c.eligible_at)
        .where(
            jobs.c.model == models.c.name,
            jobs.c.finished_at.is_(None),
            jobs.c.state.not_in(IN_FLIGHT),
        )
        .order_by(jobs.c.sequence)
        .limit(MOST_OF_MODEL)
        .correlate(models)
        .subquery()
    )
    return exists().where(first.c.state == JobState.QUEUED, first.c.eligible_at.is_(None))


_WITH_STEPS = (
    select(models.c.name)
    .where(models.c.lease_owner == bindparam("instance"), _has_step())
    .order_by(models.c.name)
)


def must_wait(connection: Connection, seen: JobRow) -> bool:
    """Return whether another job of the model is in flight, or is to be learned before.

    An evaluation waits for no dataset to be learned before it, nor for an approval: it measures the live version at once.
    """
    if seen.kind == "evaluate":
        return _is_any_in(connection, seen.model, IN_FLIGHT - {JobState.HELD})
    return is_any_in_flight(connection, seen.model) or _is_earlier_open(connection, seen)


def _is_earlier_open(connection: Connection, seen: JobRow) -> bool:
    query = select(jobs.c.id).where(
        jobs.c.model == seen.model,
        jobs.c.finished_at.is_(None),
        jobs.c.dry_run.is_(False),
        _LEARNS,
        jobs.c.sequence < seen.sequence,
    )
    return connection.execute(query.limit(1)).first() is not None


def has_open(connection: Connection, model: str) -> bool:
    query = select(jobs.c.id).where(jobs.c.model == model, jobs.c.finished_at.is_(None)).limit(1)
    return connection.execute(query).first() is not None


def is_any_in_flight(connection: Connection, model: str) -> bool:
    return _is_any_in(connection, model, IN_FLIGHT)


def _is_any_in(connection: Connection, model: str, states: frozenset[JobState]) -> bool:
    query = select(jobs.c.id).where(jobs.c.model == model, jobs.c.state.in_(states)).limit(1)
    return connection.execute(query).first() is not None


def start_attempt(connection: Connection, seen: JobRow, parent: int | None, now: datetime) -> bool:
    """Assign the next attempt, from version `parent`, before it is submitted to the launcher.

    Of an evaluation, `parent` is the version that is measured, and no version is made.
    Call it with the model locked. False also while another job of the model is in flight, or is to be learned before.
    """
    if must_wait(connection, seen):
        return False
    assert seen.state == JobState.PREPARED
    number = seen.attempt + 1
    moved = moves.move(
        connection,
        seen,
        JobState.SUBMITTING,
        now,
        attempt=number,
        parent_version=parent,
        version=None if seen.kind == "evaluate" else (parent or 0) + 1,
        **moves.NO_ATTEMPT,
    )
    if moved:
        attempts.begin(connection, seen.id, number, parent, now)
    return moved


def _found(connection: Connection, query: Select[Any], model: str) -> JobRow | None:
    return one(connection, query, moves.from_row, {"model": model})


def to_prepare(connection: Connection, model: str) -> list[JobRow]:
    """Return the model's jobs that are being prepared, and queued ones among its first MOST_OF_MODEL waiting jobs.

    Waiting jobs are counted in order of arrival, prepared ones included. This bounds how far ahead datasets are prepared,
    and an old job that was retried is prepared before later ones.
    """
    rows = connection.execute(_TO_PREPARE, {"model": model}).mappings()
    found = [moves.from_row(row) for row in rows]
    assert sum(job.state == JobState.QUEUED for job in found) <= MOST_OF_MODEL
    return found


def _to_prepare() -> Select[Any]:
    of_model = jobs.c.model == bindparam("model")
    waiting = select(jobs.c.id).where(
        of_model, jobs.c.finished_at.is_(None), jobs.c.state.not_in(IN_FLIGHT)
    )
    first = waiting.order_by(jobs.c.sequence).limit(MOST_OF_MODEL).scalar_subquery()
    query = select(jobs).where(
        of_model,
        jobs.c.state.in_((JobState.QUEUED, JobState.PREPARING)),
        or_(jobs.c.state == JobState.PREPARING, jobs.c.id.in_(first)),
    )
    # An expression: by the column, SQLite would read all jobs of the model in order, and not those in these states.
    return query.order_by(jobs.c.sequence + 0)


_TO_PREPARE = _to_prepare()


def datasets_of_open(connection: Connection) -> set[str]:
    """Return the datasets that are being prepared."""
    query = select(jobs.c.dataset).where(
        jobs.c.finished_at.is_(None), jobs.c.state == JobState.PREPARING
    )
    return set(connection.scalars(query))


# --- Which of all owners come next


@dataclass(frozen=True)
class Stage:
    """Where jobs wait for the scheduler: the state in which they wait, and those in which they use its resources."""

    waiting: JobState
    running: tuple[JobState, ...]


PREPARATION = Stage(JobState.QUEUED, (JobState.PREPARING,))
TRAINING = Stage(JobState.PREPARED, (JobState.SUBMITTING, JobState.RUNNING))


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
    return one(connection, query, moves.from_row)


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
