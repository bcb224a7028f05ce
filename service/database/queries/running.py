"""Running attempts, and their progress: what is read and written every second for all of them at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from cmcl.contract.job import Progress, submission_id
from service.database.queries import attempts as history
from service.database.tables import jobs, models
from service.states import JobState

# Values of one IN list.
_AT_ONCE = 500
# Built once: it is executed every second.
_ATTEMPTS = (
    select(jobs.c.id, jobs.c.attempt, jobs.c.model, jobs.c.revision)
    .join(models, models.c.name == jobs.c.model)
    .where(
        jobs.c.state == JobState.RUNNING,
        jobs.c.finished_at.is_(None),
        models.c.lease_owner == bindparam("replica"),
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


def attempts(connection: Connection, replica: str) -> list[RunningAttempt]:
    """Return the attempts of running jobs of models that the replica holds the leases of."""
    return [RunningAttempt(*row) for row in connection.execute(_ATTEMPTS, {"replica": replica})]


def stored_progress(
    connection: Connection, wanted: Sequence[RunningAttempt]
) -> dict[str, Progress]:
    """Return the progress that is stored of attempts, by submission id."""
    found: dict[str, Progress] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        some = {each.job: each for each in wanted[start : start + _AT_ONCE]}
        query = select(jobs.c.id, jobs.c.progress).where(jobs.c.id.in_(some))
        for job, document in connection.execute(query):
            if document is not None:
                found[some[job].submission_id] = Progress.model_validate(document)
    return found


def store_progress(connection: Connection, reports: Sequence[Report], now: datetime) -> None:
    """Store the progress of attempts that are still those of their jobs.

    It counts as a sign of life unless it says why the attempt has not started.
    """
    started = [report for report in reports if not report.progress.note]
    is_seen = (jobs.c.id == bindparam("seen_id"), jobs.c.revision == bindparam("seen_revision"))
    statement = update(jobs).where(*is_seen)
    stored: dict[str, Any] = {"progress": bindparam("document"), "message": bindparam("note")}
    waiting = [report for report in reports if report.progress.note]
    if waiting:
        connection.execute(statement.values(stored), [_row(report) for report in waiting])
    if started:
        connection.execute(
            statement.values(stored | {"heard_at": now}), [_row(report) for report in started]
        )
        history.add_points(
            connection,
            [(each.attempt.job, each.attempt.number, each.progress) for each in started],
            now,
        )


def _row(report: Report) -> dict[str, object]:
    return {
        "seen_id": report.attempt.job,
        "seen_revision": report.attempt.revision,
        "document": report.progress.model_dump(mode="json"),
        "note": report.progress.note,
    }
