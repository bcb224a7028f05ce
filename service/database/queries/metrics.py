"""Queries of the metrics. Those of the backlog read indexes of unfinished work only, so finished work costs nothing."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from cmcl.contract.job import Progress
from cmcl.contract.prepare import PrepareProgress
from service.core.states import TERMINAL, JobState
from service.database.queries import drivers
from service.database.queries.models import is_unmirrored
from service.database.tables import jobs, models, versions

_OPEN = tuple(state for state in JobState if state not in TERMINAL)
_NOT_DELETED = select(models.c.name).where(models.c.deleted_at.is_(None))
# Each model is a label value.
_MOST_JOBS = 200


@dataclass(frozen=True)
class Standing:
    """Number of jobs in a state, and since when the oldest of them is; None without any."""

    count: int = 0
    since: datetime | None = None


@dataclass(frozen=True)
class Backlog:
    """Unfinished work.

    `jobs`: every state that is not final has an entry. `prepared_rows`: by model, rows with a verdict of datasets that
    are being read or encoded. `training`: by model, rows read plus updates made in the present phase of its attempt.
    Both have the first models by name only, and none that waits: what stands still there has stalled.
    """

    jobs: Mapping[JobState, Standing]
    prepared_rows: Mapping[str, int]
    training: Mapping[str, int]
    unstored_since: datetime | None
    unmirrored_since: datetime | None
    driverless_since: datetime | None


def read_backlog(connection: Connection) -> Backlog:
    """Read the backlog."""
    return Backlog(
        jobs=_open_jobs(connection),
        prepared_rows=_prepared_rows(connection),
        training=_training(connection),
        unstored_since=_unstored_since(connection),
        unmirrored_since=_unmirrored_since(connection),
        driverless_since=_driverless_since(connection),
    )


def _open_jobs(connection: Connection) -> dict[JobState, Standing]:
    query = (
        select(jobs.c.state, func.count(), func.min(jobs.c.state_changed_at))
        .where(jobs.c.finished_at.is_(None))
        .group_by(jobs.c.state)
    )
    found = {
        JobState(state): Standing(count, since)
        for state, count, since in connection.execute(query).all()
    }
    return dict.fromkeys(_OPEN, Standing()) | found


def _unstored_since(connection: Connection) -> datetime | None:
    """Since when the oldest published version waits to be stored."""
    query = (
        select(func.min(versions.c.created_at))
        .join(models, models.c.name == versions.c.model)
        .where(versions.c.stored_at.is_(None), models.c.deleted_at.is_(None))
    )
    found: datetime | None = connection.execute(query).scalar()
    return found


def _unmirrored_since(connection: Connection) -> datetime | None:
    """Since when the oldest change waits to be mirrored to live.json."""
    query = select(func.min(models.c.revised_at)).where(is_unmirrored())
    found: datetime | None = connection.execute(query).scalar()
    return found


def _driverless_since(connection: Connection) -> datetime | None:
    """Since when jobs are to be prepared and no driver runs that does it."""
    found = drivers.newest(connection)
    since: datetime | None = connection.execute(
        select(func.min(jobs.c.state_changed_at)).where(
            jobs.c.finished_at.is_(None), jobs.c.state == JobState.PREPARING
        )
    ).scalar()
    if since is None or (found.runs and found.unavailable_since is None):
        return None
    stopped = found.unavailable_since or found.ended_at or found.began_at
    return since if stopped is None else max(since, stopped)


def _prepared_rows(connection: Connection) -> dict[str, int]:
    query = select(jobs.c.model, jobs.c.prepare_progress).where(
        jobs.c.finished_at.is_(None),
        jobs.c.state == JobState.PREPARING,
        jobs.c.prepare_progress.is_not(None),
        jobs.c.model.in_(_NOT_DELETED),
    )
    found: Counter[str] = Counter()
    for model, fields in connection.execute(query.order_by(jobs.c.model).limit(_MOST_JOBS)):
        progress = PrepareProgress.model_validate(fields)
        if progress.phase != "waiting":
            found[model] += progress.rows_done
    return found


def _training(connection: Connection) -> dict[str, int]:
    """Uses the index of each model, so waiting jobs are not read."""
    query = select(jobs.c.model, jobs.c.progress).where(
        jobs.c.model.in_(_NOT_DELETED),
        jobs.c.state == JobState.RUNNING,
        jobs.c.progress.is_not(None),
    )
    rows = connection.execute(query.order_by(jobs.c.model).limit(_MOST_JOBS)).all()
    found = [(model, Progress.model_validate(fields)) for model, fields in rows]
    return {
        model: progress.rows_done + progress.updates_done
        for model, progress in found
        if progress.phase != "waiting"
    }
