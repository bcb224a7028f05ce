"""Whose turn it is among the jobs of a model: one at a time, because each version starts from the one before."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Exists, Select, bindparam, exists, or_, select

from service.core.states import IN_FLIGHT, JobState
from service.database.engine import in_chunks
from service.database.queries import attempts
from service.database.queries import jobs as moves
from service.database.queries.models import is_unmirrored
from service.database.queries.preparations import MOST_OF_MODEL
from service.database.rows import JobRow
from service.database.tables import jobs, models, versions

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
        is_unmirrored(),
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
    """Return whether any job of the model has not ended."""
    query = select(jobs.c.id).where(jobs.c.model == model, jobs.c.finished_at.is_(None)).limit(1)
    return connection.execute(query).first() is not None


def is_any_in_flight(connection: Connection, model: str) -> bool:
    """Return whether a job of the model is in flight."""
    return _is_any_in(connection, model, IN_FLIGHT)


def _is_any_in(connection: Connection, model: str, states: frozenset[JobState]) -> bool:
    query = select(jobs.c.id).where(jobs.c.model == model, jobs.c.state.in_(states)).limit(1)
    return connection.execute(query).first() is not None


def start_attempt(
    connection: Connection, seen: JobRow, parent: int | None, submission_id: str, now: datetime
) -> bool:
    """Assign the next attempt, from version `parent`, before it is submitted to the launcher.

    Of an evaluation, `parent` is the version that is measured, and no version is made.
    Call it with the model locked. False also while another job of the model is in flight, or is to be learned before.
    """
    if must_wait(connection, seen):
        return False
    number = seen.attempt + 1
    moved = moves.move(
        connection,
        seen,
        JobState.SUBMITTING,
        now,
        attempt=number,
        submission_id=submission_id,
        parent_version=parent,
        version=None if seen.kind == "evaluate" else (parent or 0) + 1,
        message=None,
        **moves.NO_ATTEMPT,
    )
    if moved:
        attempts.begin(connection, seen.id, number, parent, now)
    return moved


def _found(connection: Connection, query: Select[Any], model: str) -> JobRow | None:
    row = connection.execute(query, {"model": model}).mappings().one_or_none()
    return None if row is None else moves.from_row(row)
