"""Queries about jobs. Every move is a compare-and-set against the job as it was seen."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, RowMapping, Update, case, func, insert, select, update

from service.database.rows import JobRecord
from service.database.tables import jobs
from service.states import IN_FLIGHT, TERMINAL, FailureReason, JobState, check_move
from workers.contract.job import Progress


def create(connection: Connection, job: str, model: str, dataset: str, now: datetime) -> None:
    """Insert a job that waits for its turn."""
    connection.execute(
        insert(jobs).values(
            id=job,
            model=model,
            dataset=dataset,
            state=JobState.QUEUED,
            attempt=0,
            attempts_before_retry=0,
            cancel_requested=False,
            created_at=now,
            state_changed_at=now,
        )
    )


def find(connection: Connection, job: str) -> JobRecord | None:
    """The job of that id."""
    row = connection.execute(select(jobs).where(jobs.c.id == job)).mappings().one_or_none()
    return None if row is None else _record(row)


def of_dataset(connection: Connection, dataset: str) -> JobRecord:
    """The one job of a dataset."""
    return _record(
        connection.execute(select(jobs).where(jobs.c.dataset == dataset)).mappings().one()
    )


def of_datasets(connection: Connection, datasets: list[str]) -> dict[str, str]:
    """Ids of jobs by dataset."""
    query = select(jobs.c.dataset, jobs.c.id).where(jobs.c.dataset.in_(datasets))
    return dict(connection.execute(query).all())


def page(
    connection: Connection,
    model: str | None,
    state: JobState | None,
    after: int | None,
    limit: int,
) -> list[JobRecord]:
    """Jobs in the order of their arrival, behind `after`."""
    query = select(jobs).order_by(jobs.c.sequence).limit(limit)
    if model is not None:
        query = query.where(jobs.c.model == model)
    if state is not None:
        query = query.where(jobs.c.state == state)
    if after is not None:
        query = query.where(jobs.c.sequence > after)
    return [_record(row) for row in connection.execute(query).mappings()]


def current(connection: Connection, model: str) -> JobRecord | None:
    """The job to look after: the one in flight, or else the oldest that waits."""
    waits = case((jobs.c.state == JobState.QUEUED, 1), else_=0)
    query = (
        select(jobs)
        .where(jobs.c.model == model, jobs.c.state.not_in(TERMINAL))
        .order_by(waits, jobs.c.sequence)
        .limit(1)
    )
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _record(row)


def count_by_state(connection: Connection) -> Mapping[str, int]:
    """How many jobs are in each state; states without jobs are there too."""
    query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    counted: dict[str, int] = dict(connection.execute(query).all())
    return {state.value: counted.get(state.value, 0) for state in JobState}


def move(
    connection: Connection, seen: JobRecord, target: JobState, now: datetime, **changes: object
) -> bool:
    """Move the job if it still is as it was seen. False means that somebody else was faster."""
    check_move(seen.state, target)
    statement = _as_seen(seen).values(state=target, state_changed_at=now, **changes)
    return connection.execute(statement).rowcount == 1


def start_validating(connection: Connection, seen: JobRecord, now: datetime) -> bool:
    """Take a waiting job unless another one of its model is in flight."""
    check_move(seen.state, JobState.VALIDATING)
    other = jobs.alias()
    in_flight = select(other.c.id).where(other.c.model == seen.model, other.c.state.in_(IN_FLIGHT))
    statement = _as_seen(seen).where(~in_flight.exists())
    changed = statement.values(state=JobState.VALIDATING, state_changed_at=now)
    return connection.execute(changed).rowcount == 1


def finish(
    connection: Connection,
    seen: JobRecord,
    target: JobState,
    now: datetime,
    reason: FailureReason | None = None,
    message: str | None = None,
) -> bool:
    """Move the job to a final state, with what the user should know."""
    return move(connection, seen, target, now, reason=reason, message=message, finished_at=now)


def retry(connection: Connection, seen: JobRecord, now: datetime) -> bool:
    """Give a failed job new attempts. Attempts go on counting: a number is used once."""
    return move(
        connection,
        seen,
        JobState.QUEUED,
        now,
        reason=None,
        message=None,
        progress=None,
        cancel_requested=False,
        attempts_before_retry=seen.attempt,
        finished_at=None,
    )


def set_progress(connection: Connection, seen: JobRecord, progress: Progress) -> None:
    """What the attempt says about itself: it gets on, so nothing else is to be said."""
    connection.execute(
        _as_seen(seen).values(progress=progress.model_dump(mode="json"), message=None)
    )


def set_message(connection: Connection, seen: JobRecord, message: str) -> None:
    """Why the job does not get on at the moment."""
    connection.execute(_as_seen(seen).values(message=message))


def request_cancel(connection: Connection, seen: JobRecord) -> bool:
    """Ask the reconciler to stop it. False if it has moved on meanwhile."""
    return connection.execute(_as_seen(seen).values(cancel_requested=True)).rowcount == 1


def _as_seen(seen: JobRecord) -> Update:
    """The fence. A cancel counts too: what was decided before it must not happen after it."""
    return update(jobs).where(
        jobs.c.id == seen.id,
        jobs.c.state == seen.state,
        jobs.c.attempt == seen.attempt,
        jobs.c.cancel_requested.is_(seen.cancel_requested),
    )


def _record(row: RowMapping) -> JobRecord:
    values = dict(row)
    values["state"] = JobState(values["state"])
    if values["reason"] is not None:
        values["reason"] = FailureReason(values["reason"])
    if values["progress"] is not None:
        values["progress"] = Progress.model_validate(values["progress"])
    return JobRecord(**values)
