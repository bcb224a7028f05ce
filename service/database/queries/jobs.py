"""Jobs. Every move is a compare-and-set against the job as it was read, and emits an event."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection, RowMapping, Update, bindparam, insert, select, update

from cmcl.contract.api.jobs import FINAL_STATES, Approval, FailureReason, JobState
from cmcl.contract.job import (
    READS_ROWS,
    ErasedRow,
    JobKind,
    Progress,
    VersionRef,
    submission_id,
)
from cmcl.contract.methods import Priority
from cmcl.contract.prepare import DatasetReport, PrepareProgress
from cmcl.contract.version import EvaluationResult
from service.core.states import check_move
from service.database.engine import Seek, in_chunks, one
from service.database.queries import attempts, datasets, events
from service.database.rows import DatasetRow, Event, JobRow, ModelRow, PreparedRows, random_id
from service.database.tables import jobs, models

# Columns of the current attempt, before it starts.
NO_ATTEMPT: Mapping[str, None] = {
    "progress": None,
    "launched_at": None,
    "heard_at": None,
    "ended_at": None,
}

_WITH_AN_ATTEMPT = (JobState.SUBMITTING, JobState.RUNNING)
_WITHOUT_A_VERSION = frozenset(
    {JobState.REPORTED, JobState.REJECTED, JobState.FAILED, JobState.CANCELLED}
)
_READS_ROWS = jobs.c.kind.in_(sorted(READS_ROWS))
_BY_ID = select(jobs).where(jobs.c.id == bindparam("id"))


def create(
    connection: Connection,
    dataset: DatasetRow,
    now: datetime,
    kind: JobKind = "learn",
    traceparent: str | None = None,
) -> JobRow:
    """Insert a queued job that reads the rows of a dataset. `traceparent`: of the request; so below."""
    about = {
        "owner": dataset.owner,
        "model": dataset.model,
        "dataset": dataset.id,
        "dataset_name": dataset.name,
        "dry_run": bool(dataset.request.get("dry_run", False)),
        "traceparent": traceparent,
    }
    return _insert_queued(connection, kind, about, now)


def create_change(
    connection: Connection,
    model: ModelRow,
    kind: JobKind,
    about: Mapping[str, object],
    now: datetime,
    traceparent: str | None = None,
) -> JobRow:
    """Insert a queued job that reads no rows. `about`: by kind, the dataset and its name, and what it erases or merges."""
    of_model = {"owner": model.owner, "model": model.name, "dry_run": False}
    columns = {name: _to_column(value) for name, value in about.items()}
    values = {**of_model, **columns, "traceparent": traceparent}
    return _insert_queued(connection, kind, values, now)


def _insert_queued(
    connection: Connection, kind: JobKind, about: Mapping[str, object], now: datetime
) -> JobRow:
    """Insert a queued job. `about`: owner, model, dataset, traceparent, and whether it is a dry run."""
    values = {
        "id": f"job-{random_id()}",
        "kind": kind,
        **about,
        "preparation": 0,
        "state": JobState.QUEUED,
        "revision": 0,
        "attempt": 0,
        "attempts_before_retry": 0,
        "cancel_requested": False,
        "created_at": now,
        "state_changed_at": now,
    }
    row = connection.execute(insert(jobs).values(values).returning(jobs)).mappings().one()
    job = from_row(row)
    _emit(connection, job, "job.queued", now, {"kind": kind})
    return job


def find(connection: Connection, job: str) -> JobRow | None:
    return one(connection, _BY_ID, from_row, {"id": job})


def open_change(
    connection: Connection, model: str, kind: JobKind, dataset: str | None, name: str = ""
) -> JobRow | None:
    """The job of that kind about the same dataset or version that has not ended."""
    is_it = jobs.c.dataset == dataset if dataset is not None else jobs.c.dataset_name == name
    query = select(jobs).where(
        jobs.c.model == model, jobs.c.kind == kind, jobs.c.finished_at.is_(None), is_it
    )
    return one(connection, query.limit(1), from_row)


def erasing(connection: Connection, model: str, row: ErasedRow) -> JobRow | None:
    """The newest job that erases the row from the dataset and has not ended without a version."""
    query = (
        select(jobs)
        .where(
            jobs.c.model == model,
            jobs.c.kind == "erase",
            jobs.c.dataset == row.dataset,
            jobs.c.state.not_in(_WITHOUT_A_VERSION),
        )
        .order_by(jobs.c.sequence.desc())
    )
    found = map(from_row, connection.execute(query).mappings())
    return next((job for job in found if job.erases and job.erases.row == row.row), None)


def of_dataset(connection: Connection, dataset: str) -> JobRow | None:
    """The one job that reads the rows of a dataset; None while it is open."""
    query = select(jobs).where(jobs.c.dataset == dataset, _READS_ROWS)
    return one(connection, query, from_row)


def of_datasets(connection: Connection, names: list[str]) -> dict[str, tuple[str, JobState]]:
    """Id and state of the job that reads its rows, by dataset."""
    columns = (jobs.c.dataset, jobs.c.id, jobs.c.state)
    query = select(*columns).where(jobs.c.dataset.in_(names), _READS_ROWS)
    return {dataset: (job, JobState(state)) for dataset, job, state in connection.execute(query)}


def page(connection: Connection, where: Mapping[str, str | None], seek: Seek[int]) -> list[JobRow]:
    """Jobs in the order of their arrival.

    `where` has values for columns (owner, model, state); None does not restrict.
    """
    query = select(jobs)
    for column, value in where.items():
        if value is not None:
            query = query.where(jobs.c[column] == value)
    rows = connection.execute(seek.restrict(query, jobs.c.sequence)).mappings()
    return [from_row(row) for row in rows]


def move(
    connection: Connection, seen: JobRow, target: JobState, now: datetime, **changes: object
) -> bool:
    """Move the job, with changes of other columns, if its revision is unchanged. Return whether it was moved.

    An erased row is forgotten when the job ends. Its message is cleared unless another one is given. A job that ends without a version releases its dataset: the same
    one may be posted again.
    """
    check_move(seen.state, target)
    assert (seen.finished_at is not None) == (seen.state in FINAL_STATES)
    values = {
        "state": target,
        "state_changed_at": now,
        "revision": seen.revision + 1,
        "eligible_at": None,
        "message": None,
        "finished_at": now if target in FINAL_STATES else None,
        **{name: _to_column(value) for name, value in changes.items()},
    }
    if seen.erases is not None and target in FINAL_STATES:
        values["erases"] = _to_column(seen.erases.model_copy(update={"first": (), "second": ()}))
    if connection.execute(as_seen(seen).values(values)).rowcount != 1:
        return False
    if seen.state in _WITH_AN_ATTEMPT and target != JobState.RUNNING:
        attempts.end(connection, seen.id, seen.attempt, target, values)
    if target in _WITHOUT_A_VERSION and seen.own_dataset is not None:
        datasets.release(connection, seen.own_dataset)
    data = {name: changes[name] for name in ("reason", "message") if changes.get(name)}
    data |= {"from": seen.state, "attempt": changes.get("attempt", seen.attempt)}
    # Clocks of instances differ.
    data["after_seconds"] = max(0.0, (now - seen.state_changed_at).total_seconds())
    _emit(connection, seen, f"job.{target}", now, data)
    return True


def retry(connection: Connection, seen: JobRow, now: datetime) -> bool:
    """Queue a failed or rejected job again. Attempts continue to count: a number is used once.

    A decision was about the candidate of that time; the next one is judged again.
    """
    assert seen.attempt >= seen.attempts_before_retry
    return move(
        connection,
        seen,
        JobState.QUEUED,
        now,
        reason=None,
        approval=None,
        cancel_requested=False,
        attempts_before_retry=seen.attempt,
        prepare_progress=None,
        prepared=None,
        swept_at=None,
        **NO_ATTEMPT,
    )


def set_launched(connection: Connection, seen: JobRow, now: datetime) -> None:
    """Record that the attempt runs; an end that was recorded before is cleared."""
    connection.execute(as_seen(seen).values(launched_at=seen.launched_at or now, ended_at=None))
    attempts.set_started(connection, seen.id, seen.attempt, now)


def set_waiting(connection: Connection, seen: JobRow, message: str, now: datetime) -> None:
    """Record that the attempt waits for the cluster, from now on, and for what."""
    waits: dict[str, object] = {"launched_at": None, "heard_at": None, "ended_at": None}
    connection.execute(as_seen(seen).values(waits | {"message": message, "state_changed_at": now}))


def set_ended(connection: Connection, seen: JobRow, now: datetime) -> None:
    connection.execute(as_seen(seen).values(ended_at=now))


def set_message(connection: Connection, seen: JobRow, message: str | None) -> None:
    """Set the message that says what the job waits for."""
    connection.execute(as_seen(seen).values(message=message))


def set_rejected(connection: Connection, job: str, prepared: PreparedRows) -> None:
    """Record the rows that cannot be used, in the transaction that quarantines the dataset."""
    values = {"prepared": _to_column(prepared)}
    connection.execute(update(jobs).where(jobs.c.id == job).values(values))


def set_prepare_progress(
    connection: Connection, seen: JobRow, progress: PrepareProgress, message: str | None
) -> None:
    """Store the progress of a preparation, and the message why it does not progress."""
    values = {"prepare_progress": _to_column(progress), "message": message}
    connection.execute(as_seen(seen).values(values))


# --- Its wait for the scheduler

# A job of high priority is ordered as if it had waited for an hour longer.
OFFSETS: Mapping[Priority, timedelta] = {
    "high": timedelta(hours=-1),
    "normal": timedelta(0),
    "low": timedelta(hours=1),
}


def enqueue(
    connection: Connection, seen: JobRow, at: datetime, priority: Priority, message: str
) -> bool:
    """Let a job wait for the scheduler. False if it has moved."""
    assert seen.state in (JobState.QUEUED, JobState.PREPARED), "only these wait for the scheduler"
    statement = as_seen(seen).values(eligible_at=at + OFFSETS[priority], message=message)
    return connection.execute(statement).rowcount == 1


def dequeue(connection: Connection, seen: JobRow) -> None:
    """Let a job no longer wait for the scheduler: it is not its turn among the jobs of its model."""
    connection.execute(as_seen(seen).values(eligible_at=None, message=None))


def reorder(connection: Connection, model: str, before: Priority, now: Priority) -> None:
    """Change the order of the waiting jobs of a model whose priority has changed."""
    waiting = select(jobs.c.id, jobs.c.eligible_at).where(
        jobs.c.model == model, jobs.c.finished_at.is_(None), jobs.c.eligible_at.is_not(None)
    )
    for job, at in connection.execute(waiting).all():
        moved = at + OFFSETS[now] - OFFSETS[before]
        connection.execute(update(jobs).where(jobs.c.id == job).values(eligible_at=moved))


# --- Its attempt

_RUNNING = (
    select(jobs.c.id, jobs.c.attempt, jobs.c.model, jobs.c.revision)
    .join(models, models.c.name == jobs.c.model)
    .where(
        jobs.c.state == JobState.RUNNING,
        jobs.c.finished_at.is_(None),
        models.c.lease_owner == bindparam("instance"),
    )
    .order_by(jobs.c.sequence)
)


@dataclass(frozen=True)
class RunningAttempt:
    """The present attempt of a running job."""

    job: str
    number: int
    model: str
    revision: int

    @property
    def submission_id(self) -> str:
        """Its id at the launcher."""
        return submission_id(self.job, self.number)


@dataclass(frozen=True)
class Report:
    """Progress of an attempt."""

    attempt: RunningAttempt
    progress: Progress


def running_attempts(connection: Connection, instance: str) -> list[RunningAttempt]:
    """Return the attempts of running jobs of models that the instance holds the leases of."""
    return [RunningAttempt(*row) for row in connection.execute(_RUNNING, {"instance": instance})]


def stored_progress(
    connection: Connection, wanted: Sequence[RunningAttempt]
) -> dict[str, Progress]:
    """Return the progress that is stored of attempts, by submission id."""
    found: dict[str, Progress] = {}
    for chunk in in_chunks(wanted):
        some = {each.job: each for each in chunk}
        query = select(jobs.c.id, jobs.c.progress).where(jobs.c.id.in_(some))
        for job, document in connection.execute(query):
            if document is not None:
                found[some[job].submission_id] = Progress.model_validate(document)
    return found


# Phases in which a note says why the attempt has not started.
_NO_RANKS = ("waiting", "starting")


def store_progress(connection: Connection, reports: Sequence[Report], now: datetime) -> None:
    """Store the progress of attempts that are still those of their jobs.

    It counts as a sign of life unless it says why the attempt has not started.
    """
    waiting = [each for each in reports if each.progress.note and each.progress.phase in _NO_RANKS]
    started = [each for each in reports if each not in waiting]
    is_seen = (jobs.c.id == bindparam("seen_id"), jobs.c.revision == bindparam("seen_revision"))
    statement = update(jobs).where(*is_seen)
    stored: dict[str, Any] = {"progress": bindparam("document"), "message": bindparam("note")}
    if waiting:
        connection.execute(statement.values(stored), [_row(report) for report in waiting])
    if started:
        connection.execute(
            statement.values(stored | {"heard_at": now}), [_row(report) for report in started]
        )
        points = [(each.attempt.job, each.attempt.number, each.progress) for each in started]
        attempts.add_points(connection, points, now)


def _row(report: Report) -> dict[str, object]:
    return {
        "seen_id": report.attempt.job,
        "seen_revision": report.attempt.revision,
        "document": _to_column(report.progress),
        "note": report.progress.note,
    }


def set_swept(connection: Connection, job: str, revision: int, now: datetime) -> bool:
    """Mark a job swept: it cannot continue, and the history of its progress is removed. False if it has moved."""
    is_seen = (jobs.c.id == job, jobs.c.revision == revision)
    statement = update(jobs).where(*is_seen).values(swept_at=now, revision=revision + 1)
    is_swept = connection.execute(statement).rowcount == 1
    if is_swept:
        attempts.forget_progress(connection, job)
    return is_swept


def request_cancel(connection: Connection, seen: JobRow, now: datetime) -> bool:
    """Ask the reconciler to stop the job. False if it has moved.

    It increments the revision like a move: a decision made before it must not take effect after it.
    """
    assert seen.state not in FINAL_STATES
    values = {"cancel_requested": True, "revision": seen.revision + 1, "eligible_at": None}
    statement = as_seen(seen).values(values)
    asked = connection.execute(statement).rowcount == 1
    if asked:
        _emit(connection, seen, "job.cancel_requested", now, {})
    return asked


def as_seen(seen: JobRow) -> Update:
    """The fence: an update of the job that fails if it was moved since it was read."""
    return update(jobs).where(jobs.c.id == seen.id, jobs.c.revision == seen.revision)


def _emit(
    connection: Connection, job: JobRow, kind: str, now: datetime, data: Mapping[str, object]
) -> None:
    subject = Event(kind=kind, owner=job.owner, model=job.model, dataset=job.dataset, job=job.id)
    events.emit(connection, replace(subject, data=data, seen=job), now)


_DOCUMENTS: Mapping[str, type[BaseModel]] = {
    "approval": Approval,
    "progress": Progress,
    "prepare_progress": PrepareProgress,
    "prepared": PreparedRows,
    "report": DatasetReport,
    "evaluation": EvaluationResult,
    "merges": VersionRef,
    "erases": ErasedRow,
}


def _to_column(value: object) -> object:
    """A document of the contract as JSON; other values as they are."""
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def from_row(row: RowMapping) -> JobRow:
    values = dict(row)
    values["state"] = JobState(values["state"])
    if values["reason"] is not None:
        values["reason"] = FailureReason(values["reason"])
    for column, kind in _DOCUMENTS.items():
        if values[column] is not None:
            values[column] = kind.model_validate(values[column])
    return JobRow(**values)
