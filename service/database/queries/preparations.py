"""Jobs whose dataset is being prepared."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, or_, select, update

from cmcl.contract.prepare import DatasetReport, PrepareProgress
from service.core.states import IN_FLIGHT, JobState
from service.database.queries import jobs as moves
from service.database.rows import JobRow, PreparedRows
from service.database.tables import jobs

# Of one model at a time. Further jobs stay queued.
MOST_OF_MODEL = 8


def to_prepare(connection: Connection, model: str) -> list[JobRow]:
    """Return the model's jobs that are being prepared, and queued ones among its first MOST_OF_MODEL waiting jobs.

    Waiting jobs are counted in order of arrival, prepared ones included. This bounds how far ahead datasets are prepared,
    and an old job that was retried is prepared before later ones.
    """
    rows = connection.execute(_TO_PREPARE, {"model": model}).mappings()
    return [moves.from_row(row) for row in rows]


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
    return query.order_by(jobs.c.sequence)


_TO_PREPARE = _to_prepare()


def begin(connection: Connection, seen: JobRow, now: datetime) -> bool:
    """Move a queued job to preparing, under the next number of a request."""
    return moves.move(
        connection,
        seen,
        JobState.PREPARING,
        now,
        preparation=seen.preparation + 1,
        prepare_progress=None,
        message=None,
        **moves.NO_ATTEMPT,
    )


def end(
    connection: Connection,
    seen: JobRow,
    prepared: PreparedRows,
    now: datetime,
    message: str | None,
) -> bool:
    """Move a job to prepared, with the counts of its rows and their encoders."""
    document = prepared.model_dump(mode="json")
    return moves.move(connection, seen, JobState.PREPARED, now, prepared=document, message=message)


def finish_report(
    connection: Connection,
    seen: JobRow,
    report: DatasetReport,
    prepared: PreparedRows,
    now: datetime,
) -> bool:
    """End a dry run with its report."""
    return moves.move(
        connection,
        seen,
        JobState.REPORTED,
        now,
        report=report.model_dump(mode="json"),
        prepared=prepared.model_dump(mode="json"),
        message=None,
        finished_at=now,
    )


def set_rejected(connection: Connection, job: str, prepared: PreparedRows) -> None:
    """Record the rows that cannot be used, in the transaction that quarantines the dataset."""
    document = prepared.model_dump(mode="json")
    connection.execute(update(jobs).where(jobs.c.id == job).values(prepared=document))


def set_progress(
    connection: Connection,
    seen: JobRow,
    progress: PrepareProgress,
    message: str | None,
) -> None:
    """Store the progress of a preparation, and the message why it does not progress."""
    document = progress.model_dump(mode="json")
    connection.execute(moves.as_seen(seen).values(prepare_progress=document, message=message))


def datasets_of_open(connection: Connection) -> set[str]:
    """Return the datasets that are being prepared."""
    query = select(jobs.c.dataset).where(
        jobs.c.finished_at.is_(None), jobs.c.state == JobState.PREPARING
    )
    return set(connection.scalars(query))
