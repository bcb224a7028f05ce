"""Canaries. Callers that change one have its model locked."""

from dataclasses import fields
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, RowMapping, insert, select, update

from cmcl.contract.rollout import CanaryPlan, Observed
from service.database.queries import backup
from service.database.rows import CanaryOutcome, CanaryRecord
from service.database.tables import models, trials


def add(connection: Connection, record: CanaryRecord) -> None:
    """Insert a canary. Raises WriteConflict if the model has one that has not ended."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    documents = {name: values[name].model_dump(mode="json") for name in ("plan", "observed")}
    connection.execute(insert(trials).values(**{**values, **documents}))


def running(connection: Connection, model: str) -> CanaryRecord | None:
    """The canary of the model that has not ended."""
    query = select(trials).where(trials.c.model == model, trials.c.ended_at.is_(None))
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _record(row)


def all_running(connection: Connection, limit: int) -> list[CanaryRecord]:
    """Canaries that have not ended, by model."""
    query = select(trials).where(trials.c.ended_at.is_(None)).order_by(trials.c.model)
    return [_record(row) for row in connection.execute(query.limit(limit)).mappings()]


def set_observed(connection: Connection, seen: CanaryRecord, observed: Observed) -> bool:
    """Store the sum of observations. False if the canary has ended."""
    document = observed.model_dump(mode="json")
    statement = update(trials).where(*_unchanged(seen)).values(observed=document)
    return connection.execute(statement).rowcount == 1


def set_rule(connection: Connection, changed: CanaryRecord) -> None:
    """Store a changed rule, who set it, and why."""
    values = {
        "plan": changed.plan.model_dump(mode="json"),
        "reason": changed.reason,
        "actor": changed.actor,
    }
    connection.execute(update(trials).where(*_unchanged(changed)).values(values))


def end(
    connection: Connection, seen: CanaryRecord, outcome: CanaryOutcome, because: str, now: datetime
) -> None:
    """End it with an outcome and a reason."""
    values = {"ended_at": now, "outcome": outcome, "ended_because": because}
    connection.execute(update(trials).where(*_unchanged(seen)).values(values))


def ended_before(connection: Connection, moment: datetime, limit: int) -> list[CanaryRecord]:
    """Canaries whose observations may still be stored, without those of deleted models."""
    query = (
        select(trials)
        .join(models, models.c.name == trials.c.model)
        .where(
            trials.c.ended_at < moment, trials.c.swept_at.is_(None), models.c.deleted_at.is_(None)
        )
        .order_by(trials.c.ended_at)
        .limit(limit)
    )
    return [_record(row) for row in connection.execute(query).mappings()]


def set_swept(connection: Connection, record: CanaryRecord, now: datetime) -> None:
    """Mark its observations removed."""
    is_it = (trials.c.model == record.model, trials.c.revision == record.revision)
    connection.execute(update(trials).where(*is_it).values(swept_at=now))
    backup.enqueue(connection, "model", record.model)


def _unchanged(seen: CanaryRecord) -> tuple[ColumnElement[bool], ...]:
    """Condition: that canary, and it has not ended."""
    return (
        trials.c.model == seen.model,
        trials.c.revision == seen.revision,
        trials.c.ended_at.is_(None),
    )


def _record(row: RowMapping) -> CanaryRecord:
    values = dict(row)
    values["plan"] = CanaryPlan.model_validate(values["plan"])
    values["observed"] = Observed.model_validate(values["observed"])
    return CanaryRecord(**values)
