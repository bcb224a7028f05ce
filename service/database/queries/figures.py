"""The queries behind the figures of models and of what is being trained."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from cmcl.contract.job import Progress
from cmcl.contract.model import ModelSpec
from cmcl.contract.policy import GatePolicy
from service.database.tables import jobs, models
from service.states import JobState


@dataclass(frozen=True)
class Versioned:
    """A model that has a version: `head` is its newest one, `live` the one that answers."""

    name: str
    head: int
    live: int | None
    spec: ModelSpec
    policy: GatePolicy


@dataclass(frozen=True)
class Training:
    """What the attempt told last that runs for a model: one at a time."""

    model: str
    progress: Progress


def versioned(connection: Connection, limit: int) -> list[Versioned]:
    """The first models by name that have a version and were not deleted."""
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
    """The first models by name that have a running attempt which has told something.

    By model, into the index of each: whatever waits there is not looked at.
    """
    there = select(models.c.name).where(models.c.deleted_at.is_(None))
    query = select(jobs.c.model, jobs.c.progress).where(
        jobs.c.model.in_(there),
        jobs.c.state == JobState.RUNNING,
        jobs.c.progress.is_not(None),
    )
    rows = connection.execute(query.order_by(jobs.c.model).limit(limit))
    return [Training(model, Progress.model_validate(progress)) for model, progress in rows]
