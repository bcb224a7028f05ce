"""Canaries. Callers that change one have its model locked."""

from dataclasses import fields
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    bindparam,
    insert,
    select,
    update,
)

from cmcl.contract.policy import CanaryPlan, Observed
from service.database.queries import backup
from service.database.rows import CanaryOutcome, CanaryRecord
from service.database.seek import Seek
from service.database.tables import canaries, models

_RUNNING = select(canaries).where(
    canaries.c.model == bindparam("model"), canaries.c.ended_at.is_(None)
)


def add(connection: Connection, record: CanaryRecord) -> None:
    """Insert a canary. Raises WriteConflict if the model has one that has not ended."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    documents = {name: values[name].model_dump(mode="json") for name in ("plan", "observed")}
    connection.execute(insert(canaries).values(**{**values, **documents}))


def running(connection: Connection, model: str) -> CanaryRecord | None:
    """The canary of the model that has not ended."""
    row = connection.execute(_RUNNING, {"model": model}).mappings().one_or_none()
    return None if row is None else _record(row)


def page(connection: Connection, model: str, seek: Seek[int]) -> list[CanaryRecord]:
    """Canaries of a model by revision, also ended ones."""
    query = select(canaries).where(canaries.c.model == model)
    rows = connection.execute(seek.restrict(query, canaries.c.revision)).mappings()
    return [_record(row) for row in rows]


def all_running(connection: Connection, limit: int) -> list[CanaryRecord]:
    """Canaries that have not ended, by model."""
    query = select(canaries).where(canaries.c.ended_at.is_(None)).order_by(canaries.c.model)
    return [_record(row) for row in connection.execute(query.limit(limit)).mappings()]


def set_observed(connection: Connection, seen: CanaryRecord, observed: Observed) -> bool:
    """Store the sum of observations. False if the canary has ended."""
    document = observed.model_dump(mode="json")
    statement = update(canaries).where(*_unchanged(seen)).values(observed=document)
    return connection.execute(statement).rowcount == 1


def set_rule(connection: Connection, changed: CanaryRecord) -> None:
    """Store a changed rule, who set it, and why."""
    values = {
        "plan": changed.plan.model_dump(mode="json"),
        "reason": changed.reason,
        "actor": changed.actor,
    }
    connection.execute(update(canaries).where(*_unchanged(changed)).values(values))


def end(
    connection: Connection, seen: CanaryRecord, outcome: CanaryOutcome, because: str, now: datetime
) -> None:
    """End it with an outcome and a reason."""
    values = {"ended_at": now, "outcome": outcome, "ended_because": because}
    connection.execute(update(canaries).where(*_unchanged(seen)).values(values))


def ended_before(connection: Connection, moment: datetime, limit: int) -> list[CanaryRecord]:
    """Canaries whose observations may still be stored, without those of deleted models."""
    query = (
        select(canaries)
        .join(models, models.c.name == canaries.c.model)
        .where(
            canaries.c.ended_at < moment,
            canaries.c.swept_at.is_(None),
            models.c.deleted_at.is_(None),
        )
        .order_by(canaries.c.ended_at)
        .limit(limit)
    )
    return [_record(row) for row in connection.execute(query).mappings()]


def set_swept(connection: Connection, record: CanaryRecord, now: datetime) -> None:
    """Mark its observations removed."""
    is_it = (canaries.c.model == record.model, canaries.c.revision == record.revision)
    connection.execute(update(canaries).where(*is_it).values(swept_at=now))
    backup.enqueue(connection, "model", record.model)


def _unchanged(seen: CanaryRecord) -> tuple[ColumnElement[bool], ...]:
    """Condition: that canary, and it has not ended."""
    return (
        canaries.c.model == seen.model,
        canaries.c.revision == seen.revision,
        canaries.c.ended_at.is_(None),
    )


def _record(row: RowMapping) -> CanaryRecord:
    values = dict(row)
    values["plan"] = CanaryPlan.model_validate(values["plan"])
    values["observed"] = Observed.model_validate(values["observed"])
    return CanaryRecord(**values)
