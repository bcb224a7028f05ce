"""Jobs whose dataset is being prepared, and the process on the cluster that prepares them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, insert, or_, select, update

from cmcl.contract.prepare import DatasetReport, PrepareProgress
from service.database.queries import jobs as moves
from service.database.rows import JobRecord, PreparedRows
from service.database.tables import jobs, prepare_drivers
from service.states import IN_FLIGHT, JobState

# Of one model at a time. Further jobs stay queued.
MOST_OF_MODEL = 8

_ID = 1
_DRIVER = select(*(column for column in prepare_drivers.columns if column.name != "id"))


def to_prepare(connection: Connection, model: str) -> list[JobRecord]:
    """Return the model's jobs that are being prepared, and queued ones among its first MOST_OF_MODEL waiting jobs.

    Waiting jobs are counted in order of arrival, prepared ones included. This bounds how far ahead datasets are prepared,
    and an old job that was retried is prepared before later ones.
    """
    rows = connection.execute(_TO_PREPARE, {"model": model}).mappings()
    return [moves.record(row) for row in rows]


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


def begin(connection: Connection, seen: JobRecord, now: datetime) -> bool:
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
    seen: JobRecord,
    prepared: PreparedRows,
    now: datetime,
    message: str | None,
) -> bool:
    """Move a job to prepared, with the counts of its rows and their encoders."""
    document = prepared.model_dump(mode="json")
    return moves.move(connection, seen, JobState.PREPARED, now, prepared=document, message=message)


def finish_report(
    connection: Connection,
    seen: JobRecord,
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
    seen: JobRecord,
    progress: PrepareProgress,
    message: str | None,
) -> None:
    """Store the progress of a preparation, and the message why it does not progress."""
    document = progress.model_dump(mode="json")
    connection.execute(moves.as_seen(seen).values(prepare_progress=document, message=message))


def is_any(connection: Connection) -> bool:
    """Return whether a job is being prepared."""
    query = select(jobs.c.id).where(
        jobs.c.finished_at.is_(None), jobs.c.state == JobState.PREPARING
    )
    return connection.execute(query.limit(1)).first() is not None


def datasets_of_open(connection: Connection) -> set[str]:
    """Return the datasets that are being prepared."""
    query = select(jobs.c.dataset).where(
        jobs.c.finished_at.is_(None), jobs.c.state == JobState.PREPARING
    )
    return set(connection.scalars(query))


@dataclass(frozen=True)
class DriverRecord:
    """The newest process that prepares datasets; `number` is 0 before the first one.

    `failures`: number of processes in a row that ended early. `unavailable_since`: since when the launcher does not
    respond, or a queue of the cluster does not start it. `message`: why none runs.
    """

    number: int = 0
    began_at: datetime | None = None
    launched_at: datetime | None = None
    ended_at: datetime | None = None
    failures: int = 0
    unavailable_since: datetime | None = None
    message: str | None = None

    @property
    def runs(self) -> bool:
        """Whether the launcher has reported it as running, and not its end."""
        return self.launched_at is not None and self.ended_at is None


def driver(connection: Connection) -> DriverRecord:
    """Return the newest process."""
    row = connection.execute(_DRIVER).mappings().one_or_none()
    return DriverRecord() if row is None else DriverRecord(**row)


def number_driver(connection: Connection, seen: DriverRecord, now: datetime) -> bool:
    """Assign the next number, before its process is submitted. False if another replica did.

    Raises WriteConflict if another replica concurrently assigned the first one.
    """
    values = {
        "number": seen.number + 1,
        "began_at": now,
        "launched_at": None,
        "ended_at": None,
        "failures": seen.failures,
    }
    if seen.number == 0:
        connection.execute(insert(prepare_drivers).values(id=_ID, **values))
        return True
    return set_driver(connection, seen, values)


def set_driver(connection: Connection, seen: DriverRecord, changes: Mapping[str, object]) -> bool:
    """Change the record of the process, unless it has another number by now. Returns whether it was changed."""
    statement = update(prepare_drivers).where(prepare_drivers.c.number == seen.number)
    return connection.execute(statement.values(**changes)).rowcount == 1
