"""The one query behind the figures of models."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from service.database.tables import models
from workers.contract.model import ModelSpec
from workers.contract.policy import GatePolicy


@dataclass(frozen=True)
class Versioned:
    """A model that has a version: `head` is its newest one, `live` the one that answers."""

    name: str
    head: int
    live: int | None
    spec: ModelSpec
    policy: GatePolicy


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
