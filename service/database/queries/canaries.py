"""Queries about versions on trial. Whoever changes one has its model locked."""

from dataclasses import fields
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, RowMapping, insert, select, update

from cmcl.contract.rollout import Observed, TrialPlan
from service.database.queries import backup
from service.database.rows import TrialOutcome, TrialRecord
from service.database.tables import models, trials


def add(connection: Connection, trial: TrialRecord) -> None:
    """Insert one. Raises WriteConflict where the model has one that has not ended."""
    values = {field.name: getattr(trial, field.name) for field in fields(trial)}
    documents = {name: values[name].model_dump(mode="json") for name in ("plan", "observed")}
    connection.execute(insert(trials).values(**{**values, **documents}))


def running(connection: Connection, model: str) -> TrialRecord | None:
    """The one that has not ended."""
    query = select(trials).where(trials.c.model == model, trials.c.ended_at.is_(None))
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _record(row)


def all_running(connection: Connection, limit: int) -> list[TrialRecord]:
    """Those of the first models by name."""
    query = select(trials).where(trials.c.ended_at.is_(None)).order_by(trials.c.model)
    return [_record(row) for row in connection.execute(query.limit(limit)).mappings()]


def set_observed(connection: Connection, seen: TrialRecord, observed: Observed) -> bool:
    """What the replicas have told. False if the trial has ended."""
    document = observed.model_dump(mode="json")
    statement = update(trials).where(*_still(seen)).values(observed=document)
    return connection.execute(statement).rowcount == 1


def set_rule(connection: Connection, changed: TrialRecord) -> None:
    """Other bounds, for what was observed already as well; who set them, and why."""
    values = {
        "plan": changed.plan.model_dump(mode="json"),
        "reason": changed.reason,
        "actor": changed.actor,
    }
    connection.execute(update(trials).where(*_still(changed)).values(values))


def end(
    connection: Connection, seen: TrialRecord, outcome: TrialOutcome, because: str, now: datetime
) -> None:
    """What becomes of it, and why."""
    values = {"ended_at": now, "outcome": outcome, "ended_because": because}
    connection.execute(update(trials).where(*_still(seen)).values(values))


def ended_before(connection: Connection, moment: datetime, limit: int) -> list[TrialRecord]:
    """Those whose observations may still be there. A deleted model's go with the model."""
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


def set_swept(connection: Connection, trial: TrialRecord, now: datetime) -> None:
    """Its observations are gone."""
    is_it = (trials.c.model == trial.model, trials.c.revision == trial.revision)
    connection.execute(update(trials).where(*is_it).values(swept_at=now))
    backup.note(connection, "model", trial.model)


def _still(seen: TrialRecord) -> tuple[ColumnElement[bool], ...]:
    """That one, and it has not ended."""
    return (
        trials.c.model == seen.model,
        trials.c.revision == seen.revision,
        trials.c.ended_at.is_(None),
    )


def _record(row: RowMapping) -> TrialRecord:
    values = dict(row)
    values["plan"] = TrialPlan.model_validate(values["plan"])
    values["observed"] = Observed.model_validate(values["observed"])
    return TrialRecord(**values)
