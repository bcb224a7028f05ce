"""Jobs. Every move is a compare-and-set against the job as it was read, and emits an event."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime

from pydantic import BaseModel
from sqlalchemy import Connection, RowMapping, Update, bindparam, insert, select, update

from cmcl.contract.job import READS_ROWS, JobKind, Progress, VersionRef
from cmcl.contract.prepare import DatasetReport, PrepareProgress
from cmcl.contract.version import EvaluationResult, LearnedDataset
from service.core.states import FailureReason, JobState, check_move
from service.database.queries import attempts, events
from service.database.rows import (
    Approval,
    DatasetRow,
    Event,
    JobRow,
    ModelRow,
    PreparedRows,
    random_id,
)
from service.database.seek import Seek
from service.database.tables import jobs

# Columns of the current attempt, before it starts.
NO_ATTEMPT: Mapping[str, None] = {
    "progress": None,
    "launched_at": None,
    "heard_at": None,
    "ended_at": None,
}

_WITH_AN_ATTEMPT = (JobState.SUBMITTING, JobState.RUNNING)
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


def create_unlearning(
    connection: Connection,
    model: ModelRow,
    line: LearnedDataset,
    now: datetime,
    traceparent: str | None = None,
) -> JobRow:
    """Insert a queued job that unlearns a dataset of the model's lineage."""
    about = {"dataset": line.dataset, "dataset_name": line.name, "traceparent": traceparent}
    return _insert_queued(connection, "unlearn", _of_model(model) | about, now)


def create_merge(
    connection: Connection,
    model: ModelRow,
    merges: VersionRef,
    now: datetime,
    traceparent: str | None = None,
) -> JobRow:
    """Insert a queued job that merges another version into the model."""
    about = {
        "merges": merges.model_dump(mode="json"),
        "dataset_name": str(merges),
        "traceparent": traceparent,
    }
    return _insert_queued(connection, "merge", _of_model(model) | about, now)


def _of_model(model: ModelRow) -> dict[str, object]:
    return {"owner": model.owner, "model": model.name, "dry_run": False}


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
    """The job of that id."""
    row = connection.execute(_BY_ID, {"id": job}).mappings().one_or_none()
    return None if row is None else from_row(row)


def open_change(
    connection: Connection, model: str, kind: JobKind, dataset: str | None, name: str
) -> JobRow | None:
    """The job of that kind about the same dataset or version that has not ended."""
    is_it = jobs.c.dataset == dataset if dataset is not None else jobs.c.dataset_name == name
    query = select(jobs).where(
        jobs.c.model == model, jobs.c.kind == kind, jobs.c.finished_at.is_(None), is_it
    )
    row = connection.execute(query.limit(1)).mappings().one_or_none()
    return None if row is None else from_row(row)


def of_dataset(connection: Connection, dataset: str) -> JobRow | None:
    """The one job that reads the rows of a dataset; None while it is open."""
    query = select(jobs).where(jobs.c.dataset == dataset, _READS_ROWS)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else from_row(row)


def of_datasets(connection: Connection, datasets: list[str]) -> dict[str, tuple[str, JobState]]:
    """Id and state of the job that reads its rows, by dataset."""
    columns = (jobs.c.dataset, jobs.c.id, jobs.c.state)
    query = select(*columns).where(jobs.c.dataset.in_(datasets), _READS_ROWS)
    return {dataset: (job, JobState(state)) for dataset, job, state in connection.execute(query)}


def page(
    connection: Connection,
    where: Mapping[str, str | None],
    seek: Seek[int],
) -> list[JobRow]:
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
    """Move the job if its revision is unchanged. False if another instance moved it first."""
    check_move(seen.state, target)
    return _moved(connection, seen, as_seen(seen), target, now, changes)


def finish(
    connection: Connection,
    seen: JobRow,
    target: JobState,
    now: datetime,
    reason: FailureReason | None = None,
    message: str | None = None,
) -> bool:
    """Move the job to a final state, with a reason and a message for the user."""
    return move(connection, seen, target, now, reason=reason, message=message, finished_at=now)


def finish_evaluation(
    connection: Connection, seen: JobRow, result: EvaluationResult, now: datetime
) -> bool:
    """End the job of a dataset that is measured only, with the result of the live version."""
    document = result.model_dump(mode="json")
    return move(
        connection,
        seen,
        JobState.EVALUATED,
        now,
        evaluation=document,
        message=result.note,
        finished_at=now,
    )


def approve(connection: Connection, seen: JobRow, approval: Approval, now: datetime) -> bool:
    """Return a held candidate to its judgement, with an approval."""
    return move(
        connection,
        seen,
        JobState.GATING,
        now,
        approval=_written(approval),
        message=None,
    )


def reject(connection: Connection, seen: JobRow, approval: Approval, now: datetime) -> bool:
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


def _written(approval: Approval) -> dict[str, object]:
    return {**asdict(approval), "at": approval.at.isoformat()}


def retry(connection: Connection, seen: JobRow, now: datetime) -> bool:
    """Queue a failed or rejected job again. Attempts continue to count: a number is used once.

    A decision was about the candidate of that time; the next one is judged again.
    """
    return move(
        connection,
        seen,
        JobState.QUEUED,
        now,
        reason=None,
        message=None,
        approval=None,
        cancel_requested=False,
        attempts_before_retry=seen.attempt,
        prepare_progress=None,
        prepared=None,
        finished_at=None,
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
    """Record that the attempt has ended."""
    connection.execute(as_seen(seen).values(ended_at=now))


def set_message(connection: Connection, seen: JobRow, message: str | None) -> None:
    """Set the message that says what the job waits for."""
    connection.execute(as_seen(seen).values(message=message))


def request_cancel(connection: Connection, seen: JobRow, now: datetime) -> bool:
    """Ask the reconciler to stop the job. False if it has moved.

    It increments the revision like a move: a decision made before it must not take effect after it.
    """
    values = {"cancel_requested": True, "revision": seen.revision + 1, "eligible_at": None}
    statement = as_seen(seen).values(values)
    asked = connection.execute(statement).rowcount == 1
    if asked:
        _emit(connection, seen, "job.cancel_requested", now, {})
    return asked


def as_seen(seen: JobRow) -> Update:
    """The fence: an update of the job that fails if it was moved since it was read."""
    return update(jobs).where(jobs.c.id == seen.id, jobs.c.revision == seen.revision)


def _moved(
    connection: Connection,
    seen: JobRow,
    statement: Update,
    target: JobState,
    now: datetime,
    changes: Mapping[str, object],
) -> bool:
    values = {
        "state": target,
        "state_changed_at": now,
        "revision": seen.revision + 1,
        "eligible_at": None,
        **changes,
    }
    if connection.execute(statement.values(values)).rowcount != 1:
        return False
    if seen.state in _WITH_AN_ATTEMPT and target != JobState.RUNNING:
        attempts.end(connection, seen.id, seen.attempt, target, values)
    data = {name: changes[name] for name in ("reason", "message") if changes.get(name)}
    data |= {"from": seen.state, "attempt": changes.get("attempt", seen.attempt)}
    # Clocks of instances differ.
    data["after_seconds"] = max(0.0, (now - seen.state_changed_at).total_seconds())
    _emit(connection, seen, f"job.{target}", now, data)
    return True


def _emit(
    connection: Connection,
    job: JobRow,
    kind: str,
    now: datetime,
    data: Mapping[str, object],
) -> None:
    subject = Event(kind=kind, owner=job.owner, model=job.model, dataset=job.dataset, job=job.id)
    events.emit(connection, replace(subject, data=data, seen=job), now)


_DOCUMENTS: Mapping[str, type[BaseModel]] = {
    "progress": Progress,
    "prepare_progress": PrepareProgress,
    "prepared": PreparedRows,
    "report": DatasetReport,
    "evaluation": EvaluationResult,
    "merges": VersionRef,
}


def from_row(row: RowMapping) -> JobRow:
    """Return the job of a row."""
    values = dict(row)
    values["state"] = JobState(values["state"])
    if values["reason"] is not None:
        values["reason"] = FailureReason(values["reason"])
    for column, kind in _DOCUMENTS.items():
        if values[column] is not None:
            values[column] = kind.model_validate(values[column])
    if values["approval"] is not None:
        approval = values["approval"]
        values["approval"] = Approval(**{**approval, "at": datetime.fromisoformat(approval["at"])})
    return JobRow(**values)
