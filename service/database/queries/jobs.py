"""Jobs. Every move is a compare-and-set against the job as it was read, and emits an event."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import Connection, RowMapping, Update, insert, select, update

from cmcl.contract.job import Progress
from service.database.queries import events
from service.database.rows import Approval, DatasetRecord, Event, JobRecord, random_id
from service.database.tables import jobs
from service.states import IN_FLIGHT, FailureReason, JobState, check_move

# Columns of the current attempt, before it starts.
_NO_ATTEMPT: Mapping[str, None] = {
    "progress": None,
    "launched_at": None,
    "heard_at": None,
    "ended_at": None,
}


def create(connection: Connection, dataset: DatasetRecord, now: datetime) -> JobRecord:
    """Insert a queued job for a dataset."""
    values = {
        "id": f"job-{random_id()}",
        "owner": dataset.owner,
        "model": dataset.model,
        "dataset": dataset.id,
        "state": JobState.QUEUED,
        "revision": 0,
        "attempt": 0,
        "attempts_before_retry": 0,
        "cancel_requested": False,
        "created_at": now,
        "state_changed_at": now,
    }
    row = connection.execute(insert(jobs).values(values).returning(jobs)).mappings().one()
    job = _record(row)
    _emit(connection, job, "job.queued", now, {})
    return job


def find(connection: Connection, job: str) -> JobRecord | None:
    """The job of that id."""
    row = connection.execute(select(jobs).where(jobs.c.id == job)).mappings().one_or_none()
    return None if row is None else _record(row)


def of_dataset(connection: Connection, dataset: str) -> JobRecord | None:
    """The one job of a dataset; None while it is open."""
    query = select(jobs).where(jobs.c.dataset == dataset)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _record(row)


def of_datasets(connection: Connection, datasets: list[str]) -> dict[str, str]:
    """Ids of jobs by dataset."""
    query = select(jobs.c.dataset, jobs.c.id).where(jobs.c.dataset.in_(datasets))
    return dict(connection.execute(query).all())


def page(
    connection: Connection,
    where: Mapping[str, str | None],
    after: int | None,
    limit: int,
) -> list[JobRecord]:
    """Jobs in the order of their arrival, after `after`.

    `where` has values for columns (owner, model, state); None does not restrict.
    """
    query = select(jobs).order_by(jobs.c.sequence).limit(limit)
    for column, value in where.items():
        if value is not None:
            query = query.where(jobs.c[column] == value)
    if after is not None:
        query = query.where(jobs.c.sequence > after)
    return [_record(row) for row in connection.execute(query).mappings()]


def current(connection: Connection, model: str) -> JobRecord | None:
    """The job to reconcile: the one in flight, or else the oldest that waits.

    Two index lookups, so that ten thousand waiting jobs cost no more than one.
    """
    for states in (IN_FLIGHT, (JobState.QUEUED,)):
        query = (
            select(jobs)
            .where(jobs.c.model == model, jobs.c.state.in_(states))
            .order_by(jobs.c.state, jobs.c.sequence)
            .limit(1)
        )
        row = connection.execute(query).mappings().one_or_none()
        if row is not None:
            return _record(row)
    return None


def has_open(connection: Connection, model: str) -> bool:
    """Return whether any job of the model has not ended."""
    query = select(jobs.c.id).where(jobs.c.model == model, jobs.c.finished_at.is_(None)).limit(1)
    return connection.execute(query).first() is not None


def is_any_in_flight(connection: Connection, model: str) -> bool:
    """Return whether a job of the model is in flight."""
    query = select(jobs.c.id).where(jobs.c.model == model, jobs.c.state.in_(IN_FLIGHT)).limit(1)
    return connection.execute(query).first() is not None


def move(
    connection: Connection, seen: JobRecord, target: JobState, now: datetime, **changes: object
) -> bool:
    """Move the job if its revision is unchanged. False if another replica moved it first."""
    check_move(seen.state, target)
    return _moved(connection, seen, _as_seen(seen), target, now, changes)


def start_validating(connection: Connection, seen: JobRecord, now: datetime) -> bool:
    """Start a waiting job unless another one of its model is in flight."""
    check_move(seen.state, JobState.VALIDATING)
    other = jobs.alias()
    in_flight = select(other.c.id).where(other.c.model == seen.model, other.c.state.in_(IN_FLIGHT))
    statement = _as_seen(seen).where(~in_flight.exists())
    return _moved(connection, seen, statement, JobState.VALIDATING, now, {})


def start_attempt(
    connection: Connection, seen: JobRecord, parent: int | None, submission_id: str, now: datetime
) -> bool:
    """Assign the next attempt, from version `parent`, before it is submitted to the launcher."""
    return move(
        connection,
        seen,
        JobState.SUBMITTING,
        now,
        attempt=seen.attempt + 1,
        submission_id=submission_id,
        parent_version=parent,
        version=(parent or 0) + 1,
        message=None,
        **_NO_ATTEMPT,
    )


def finish(
    connection: Connection,
    seen: JobRecord,
    target: JobState,
    now: datetime,
    reason: FailureReason | None = None,
    message: str | None = None,
) -> bool:
    """Move the job to a final state, with a reason and a message for the user."""
    return move(connection, seen, target, now, reason=reason, message=message, finished_at=now)


def retry(connection: Connection, seen: JobRecord, now: datetime) -> bool:
    """Queue a failed job again. Attempts continue to count: a number is used once."""
    return move(
        connection,
        seen,
        JobState.QUEUED,
        now,
        reason=None,
        message=None,
        cancel_requested=False,
        attempts_before_retry=seen.attempt,
        finished_at=None,
        swept_at=None,
        **_NO_ATTEMPT,
    )


def approve(connection: Connection, seen: JobRecord, approval: Approval, now: datetime) -> bool:
    """Let a candidate that was held or rejected be judged again, with an approval."""
    return move(
        connection,
        seen,
        JobState.GATING,
        now,
        approval=_written(approval),
        reason=None,
        message=None,
        finished_at=None,
    )


def reject(connection: Connection, seen: JobRecord, approval: Approval, now: datetime) -> bool:
    """Reject a held candidate on behalf of a user."""
    return move(
        connection,
        seen,
        JobState.REJECTED,
        now,
        approval=_written(approval),
        reason=FailureReason.REJECTED_BY_HAND,
        message=f"{approval.actor}: {approval.reason or 'no reason was given'}",
        finished_at=now,
    )


def set_progress(
    connection: Connection, seen: JobRecord, progress: Progress, now: datetime
) -> None:
    """Store the progress of the attempt. It counts as a sign of life unless it says why the attempt has not started."""
    heard_at = seen.heard_at if progress.note else now
    document = progress.model_dump(mode="json")
    connection.execute(
        _as_seen(seen).values(progress=document, heard_at=heard_at, message=progress.note)
    )


def set_launched(connection: Connection, seen: JobRecord, now: datetime) -> None:
    """Record that the attempt runs; an end that was recorded before is cleared."""
    connection.execute(_as_seen(seen).values(launched_at=seen.launched_at or now, ended_at=None))


def set_ended(connection: Connection, seen: JobRecord, now: datetime) -> None:
    """Record that the attempt has ended."""
    connection.execute(_as_seen(seen).values(ended_at=now))


def set_message(connection: Connection, seen: JobRecord, message: str) -> None:
    """Set the message that says what the job waits for."""
    connection.execute(_as_seen(seen).values(message=message))


def request_cancel(connection: Connection, seen: JobRecord, now: datetime) -> bool:
    """Ask the reconciler to stop the job. False if it has moved.

    It increments the revision like a move: a decision made before it must not take effect after it.
    """
    statement = _as_seen(seen).values(cancel_requested=True, revision=seen.revision + 1)
    asked = connection.execute(statement).rowcount == 1
    if asked:
        _emit(connection, seen, "job.cancel_requested", now, {})
    return asked


def _as_seen(seen: JobRecord) -> Update:
    """The fence: the job was not moved since it was read."""
    return update(jobs).where(jobs.c.id == seen.id, jobs.c.revision == seen.revision)


def _moved(
    connection: Connection,
    seen: JobRecord,
    statement: Update,
    target: JobState,
    now: datetime,
    changes: Mapping[str, object],
) -> bool:
    changed = statement.values(
        state=target, state_changed_at=now, revision=seen.revision + 1, **changes
    )
    if connection.execute(changed).rowcount != 1:
        return False
    data = {name: changes[name] for name in ("reason", "message") if changes.get(name)}
    data |= {"from": seen.state, "attempt": changes.get("attempt", seen.attempt)}
    # Clocks of replicas differ.
    data["after_seconds"] = max(0.0, (now - seen.state_changed_at).total_seconds())
    _emit(connection, seen, f"job.{target}", now, data)
    return True


def _emit(
    connection: Connection,
    job: JobRecord,
    kind: str,
    now: datetime,
    data: Mapping[str, object],
) -> None:
    event = Event(
        kind=kind, owner=job.owner, model=job.model, dataset=job.dataset, job=job.id, data=data
    )
    events.emit(connection, event, now)


def _written(approval: Approval) -> dict[str, object]:
    return {**asdict(approval), "at": approval.at.isoformat()}


def _record(row: RowMapping) -> JobRecord:
    values = dict(row)
    values["state"] = JobState(values["state"])
    if values["reason"] is not None:
        values["reason"] = FailureReason(values["reason"])
    if values["progress"] is not None:
        values["progress"] = Progress.model_validate(values["progress"])
    if values["approval"] is not None:
        approval = values["approval"]
        values["approval"] = Approval(**{**approval, "at": datetime.fromisoformat(approval["at"])})
    return JobRecord(**values)
