"""Queries of the metrics. Those of the backlog read indexes of unfinished work only, so finished work costs nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from cmcl.contract.job import Progress
from cmcl.contract.model import ModelSpec
from cmcl.contract.policy import GatePolicy
from service.database.queries.models import is_unmirrored
from service.database.tables import jobs, models, versions
from service.states import IN_FLIGHT, JobState

_OPEN = (JobState.QUEUED, *sorted(IN_FLIGHT))


@dataclass(frozen=True)
class Standing:
    """Number of jobs in a state, and since when the oldest of them is; None without any."""

    count: int = 0
    since: datetime | None = None


@dataclass(frozen=True)
class Backlog:
    """Unfinished work. Every state that is not final has an entry."""

    jobs: Mapping[JobState, Standing]
    unstored_since: datetime | None
    unmirrored_since: datetime | None


def read_backlog(connection: Connection) -> Backlog:
    """Read the backlog."""
    return Backlog(
        jobs=_open_jobs(connection),
        unstored_since=_unstored_since(connection),
        unmirrored_since=_unmirrored_since(connection),
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
    return {state: found.get(state, Standing()) for state in _OPEN}


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


@dataclass(frozen=True)
class Versioned:
    """A model with versions: `head` is the newest, `live` the live one."""

    name: str
    head: int
    live: int | None
    spec: ModelSpec
    policy: GatePolicy


@dataclass(frozen=True)
class Training:
    """The progress of the running attempt of a model."""

    model: str
    progress: Progress


def versioned(connection: Connection, limit: int) -> list[Versioned]:
    """The first models by name that have a version and are not deleted."""
    columns = models.c.name, models.c.head, models.c.live_version, models.c.spec, models.c.policy
    query = select(*columns).where(models.c.head > 0, models.c.deleted_at.is_(None))
    rows = connection.execute(query.order_by(models.c.name).limit(limit))
    return [
        Versioned(
            name, head, live, ModelSpec.model_validate(spec), GatePolicy.model_validate(policy)
        )
        for name, head, live, spec, policy in rows
    ]


def training(connection: Connection, limit: int) -> list[Training]:
    """The first models by name that have a running attempt with progress.

    Uses the index of each model, so waiting jobs are not read.
    """
    there = select(models.c.name).where(models.c.deleted_at.is_(None))
    query = select(jobs.c.model, jobs.c.progress).where(
        jobs.c.model.in_(there),
        jobs.c.state == JobState.RUNNING,
        jobs.c.progress.is_not(None),
    )
    rows = connection.execute(query.order_by(jobs.c.model).limit(limit))
    return [Training(model, Progress.model_validate(progress)) for model, progress in rows]
