"""Overviews: of unfinished work for the metrics, and of models for lists and pages.

Unfinished work is read from indexes that have nothing else, and models by a few queries for a page of them: neither grows
with the number of finished jobs and versions.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, and_, func, select

from cmcl.contract.api.jobs import FINAL_STATES, JobState
from cmcl.contract.api.models import NewestVersion, SummaryJob
from cmcl.contract.job import Progress
from cmcl.contract.prepare import PrepareProgress
from service.core.states import IN_FLIGHT
from service.database.queries import instances
from service.database.queries.models import is_pointer_unwritten
from service.database.tables import jobs, models, versions

_OPEN = tuple(state for state in JobState if state not in FINAL_STATES)
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
    unwritten_since: datetime | None
    driverless_since: datetime | None


def read_backlog(connection: Connection) -> Backlog:
    return Backlog(
        jobs=_open_jobs(connection),
        prepared_rows=_prepared_rows(connection),
        training=_training(connection),
        unstored_since=_unstored_since(connection),
        unwritten_since=_unwritten_since(connection),
        driverless_since=_driverless_since(connection),
    )


def _open_jobs(connection: Connection) -> dict[JobState, Standing]:
    # An expression: by the column, SQLite would read the index of all jobs by state, and not that of open ones.
    state = jobs.c.state.concat("")
    query = (
        select(state, func.count(), func.min(jobs.c.state_changed_at))
        .where(jobs.c.finished_at.is_(None))
        .group_by(state)
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


def _unwritten_since(connection: Connection) -> datetime | None:
    """Since when the oldest change waits to be written to live.json."""
    query = select(func.min(models.c.revised_at)).where(is_pointer_unwritten())
    found: datetime | None = connection.execute(query).scalar()
    return found


def _driverless_since(connection: Connection) -> datetime | None:
    """Since when jobs are to be prepared and no driver runs that does it."""
    found = instances.newest_driver(connection)
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


@dataclass(frozen=True)
class Summaries:
    """By model, without those that have none."""

    newest: Mapping[str, NewestVersion]
    jobs: Mapping[str, Mapping[JobState, int]]
    current: Mapping[str, SummaryJob]
    last_ended: Mapping[str, SummaryJob]


def read_summaries(connection: Connection, names: Sequence[str]) -> Summaries:
    current = _in_flight(connection, names)
    waiting = _first_waiting(connection, [name for name in names if name not in current])
    return Summaries(
        newest=_newest(connection, names),
        jobs=_counts(connection, names),
        current={**waiting, **current},
        last_ended=_last_ended(connection, names),
    )


def _newest(connection: Connection, names: Sequence[str]) -> dict[str, NewestVersion]:
    columns = (
        *("model", "number", "kind", "dataset", "dataset_name", "created_at", "stored_at"),
        *("max_drift", "mean_recall", "capacity"),
    )
    is_newest = and_(versions.c.model == models.c.name, versions.c.number == models.c.head)
    query = (
        select(*(versions.c[name] for name in columns))
        .join_from(models, versions, is_newest)
        .where(models.c.name.in_(names))
    )
    return {
        row.model: NewestVersion(
            version=row.number,
            kind=row.kind,
            dataset=row.dataset,
            dataset_name=row.dataset_name,
            created_at=row.created_at,
            stored_at=row.stored_at,
            max_drift=row.max_drift,
            mean_recall=row.mean_recall,
            free_share={name: head["free_share"] for name, head in row.capacity.items()},
        )
        for row in connection.execute(query)
    }


def _counts(connection: Connection, names: Sequence[str]) -> dict[str, dict[JobState, int]]:
    """Number of jobs that have not ended, from the index of models and states."""
    query = (
        select(jobs.c.model, jobs.c.state, func.count())
        .where(jobs.c.model.in_(names), jobs.c.state.in_(_OPEN))
        .group_by(jobs.c.model, jobs.c.state)
    )
    found: dict[str, dict[JobState, int]] = {}
    for model, state, number in connection.execute(query):
        found.setdefault(model, {})[JobState(state)] = number
    return found


def _in_flight(connection: Connection, names: Sequence[str]) -> dict[str, SummaryJob]:
    return _jobs(connection, _select().where(jobs.c.model.in_(names), jobs.c.state.in_(IN_FLIGHT)))


def _first_waiting(connection: Connection, names: Sequence[str]) -> dict[str, SummaryJob]:
    """The first job in the order of arrival that will be learned."""
    other = jobs.alias()
    first = (
        select(other.c.sequence)
        .where(
            other.c.model == models.c.name,
            other.c.finished_at.is_(None),
            other.c.dry_run.is_(False),
        )
        .order_by(other.c.sequence)
        .limit(1)
    )
    return _jobs(connection, _of_models(names, first))


def _last_ended(connection: Connection, names: Sequence[str]) -> dict[str, SummaryJob]:
    other = jobs.alias()
    last = (
        select(other.c.sequence)
        .where(other.c.model == models.c.name, other.c.finished_at.is_not(None))
        .order_by(other.c.finished_at.desc())
        .limit(1)
    )
    return _jobs(connection, _of_models(names, last))


def _of_models(names: Sequence[str], sequence: Select[tuple[int]]) -> Select[Any]:
    """A job of each model, by a lookup in an index for each of them."""
    is_it = jobs.c.sequence == sequence.correlate(models).scalar_subquery()
    return _select().join(models, is_it).where(models.c.name.in_(names))


def _select() -> Select[Any]:
    columns = (
        *("model", "id", "kind", "dataset", "dataset_name", "state", "reason", "message"),
        *("attempt", "version", "progress", "created_at", "state_changed_at", "finished_at"),
    )
    return select(*(jobs.c[name] for name in columns)).select_from(jobs)


def _jobs(connection: Connection, query: Select[Any]) -> dict[str, SummaryJob]:
    return {
        row["model"]: SummaryJob.model_validate({**row, "job": row["id"]})
        for row in connection.execute(query).mappings()
    }
