"""Queries of the metrics. Those of the backlog read indexes of unfinished work only, so finished work costs nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from cmcl.contract.gate import Gate
from cmcl.contract.job import Progress
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import PrepareProgress
from service.database.queries import preparations
from service.database.queries.models import is_unmirrored
from service.database.queries.scheduling import PREPARATION, TRAINING
from service.database.tables import jobs, models, versions
from service.states import TERMINAL, JobState

_OPEN = tuple(state for state in JobState if state not in TERMINAL)
_WAITING = (PREPARATION.waiting, TRAINING.waiting)
# An owner is a label of a metric: more would be too many series.
MOST_OWNERS = 20


@dataclass(frozen=True)
class Standing:
    """Number of jobs in a state, and since when the oldest of them is; None without any."""

    count: int = 0
    since: datetime | None = None


@dataclass(frozen=True)
class OwnerJobs:
    """Jobs of an owner: those that wait, for their preparation or their attempt, and those with an attempt."""

    waiting: int
    running: int


@dataclass(frozen=True)
class Backlog:
    """Unfinished work. Every state that is not final has an entry. `owners`: the MOST_OWNERS owners
    with most waiting jobs."""

    jobs: Mapping[JobState, Standing]
    owners: Mapping[str, OwnerJobs]
    unstored_since: datetime | None
    unmirrored_since: datetime | None
    driverless_since: datetime | None


def read_backlog(connection: Connection) -> Backlog:
    """Read the backlog."""
    by_owner = _open_jobs(connection)
    return Backlog(
        jobs=_by_state(by_owner),
        owners=_by_owner(by_owner),
        unstored_since=_unstored_since(connection),
        unmirrored_since=_unmirrored_since(connection),
        driverless_since=_driverless_since(connection),
    )


def _open_jobs(connection: Connection) -> dict[tuple[str, JobState], Standing]:
    """Jobs that have not ended, by owner and state."""
    query = (
        select(jobs.c.owner, jobs.c.state, func.count(), func.min(jobs.c.state_changed_at))
        .where(jobs.c.finished_at.is_(None))
        .group_by(jobs.c.owner, jobs.c.state)
    )
    return {
        (owner, JobState(state)): Standing(count, since)
        for owner, state, count, since in connection.execute(query).all()
    }


def _by_state(found: Mapping[tuple[str, JobState], Standing]) -> dict[JobState, Standing]:
    totals = dict.fromkeys(_OPEN, Standing())
    for (_, state), each in found.items():
        before = totals[state]
        since = min(filter(None, (before.since, each.since)), default=None)
        totals[state] = Standing(before.count + each.count, since)
    return totals


def _by_owner(found: Mapping[tuple[str, JobState], Standing]) -> dict[str, OwnerJobs]:
    def number(owner: str, states: tuple[JobState, ...]) -> int:
        return sum(found.get((owner, state), Standing()).count for state in states)

    owners = {
        owner: OwnerJobs(number(owner, _WAITING), number(owner, TRAINING.running))
        for owner in {owner for owner, _ in found}
    }
    largest = sorted(owners, key=lambda owner: (-owners[owner].waiting, owner))
    return {owner: owners[owner] for owner in largest[:MOST_OWNERS]}


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
    """Since when jobs are to be prepared and no process runs that does it."""
    found = preparations.driver(connection)
    since: datetime | None = connection.execute(
        select(func.min(jobs.c.state_changed_at)).where(
            jobs.c.finished_at.is_(None), jobs.c.state == JobState.PREPARING
        )
    ).scalar()
    if since is None or (found.runs and found.unavailable_since is None):
        return None
    stopped = found.unavailable_since or found.ended_at or found.began_at
    return since if stopped is None else max(since, stopped)


@dataclass(frozen=True)
class Versioned:
    """A model with versions: `head` is the newest, `live` the live one."""

    name: str
    head: int
    live: int | None
    spec: ModelSpec
    gate: Gate


@dataclass(frozen=True)
class Training:
    """The progress of the running attempt of a model."""

    model: str
    progress: Progress


@dataclass(frozen=True)
class Preparing:
    """A dataset that is being prepared. `progress`: None before the first report."""

    model: str
    progress: PrepareProgress | None


def versioned(connection: Connection, limit: int) -> list[Versioned]:
    """The first models by name that have a version and are not deleted."""
    columns = models.c.name, models.c.head, models.c.live_version, models.c.spec, models.c.gate
    query = select(*columns).where(models.c.head > 0, models.c.deleted_at.is_(None))
    rows = connection.execute(query.order_by(models.c.name).limit(limit))
    return [
        Versioned(name, head, live, ModelSpec.model_validate(spec), Gate.model_validate(gate))
        for name, head, live, spec, gate in rows
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


def preparing(connection: Connection, limit: int) -> list[Preparing]:
    """Datasets that are being prepared: the first ones by name of their model."""
    there = select(models.c.name).where(models.c.deleted_at.is_(None))
    query = select(jobs.c.model, jobs.c.prepare_progress).where(
        jobs.c.finished_at.is_(None),
        jobs.c.state == JobState.PREPARING,
        jobs.c.model.in_(there),
    )
    rows = connection.execute(query.order_by(jobs.c.model).limit(limit))
    return [
        Preparing(model, None if found is None else PrepareProgress.model_validate(found))
        for model, found in rows
    ]
