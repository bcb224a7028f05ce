"""Models and their live pointers."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    bindparam,
    func,
    insert,
    or_,
    select,
    update,
)

from cmcl.contract.api.events import EventKind
from cmcl.contract.drift import DriftReport
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.model import Gate, ModelSpec
from service.database.engine import Seek, one
from service.database.queries import backup, events, jobs
from service.database.rows import BranchPoint, Event, ModelRow
from service.database.tables import events as event_rows
from service.database.tables import models

# Statements that the reconciler executes all the time are built once.
_BY_NAME = select(models).where(models.c.name == bindparam("name"))


def create(
    connection: Connection,
    name: str,
    owner: str,
    spec: ModelSpec,
    now: datetime,
    branch: BranchPoint | None = None,
) -> None:
    """Insert a model without versions and encoders. Raises WriteConflict if the name is taken.

    For a branch, the caller inserts the versions that it copies, and sets their encoders.
    """
    connection.execute(
        insert(models).values(
            name=name,
            owner=owner,
            spec=spec.model_dump(mode="json"),
            gate=Gate().model_dump(mode="json"),
            gate_revision=1,
            head=branch.version if branch else 0,
            live_generation=0,
            live_revision=0,
            written_revision=0,
            encoders={},
            branched_from=asdict(branch) if branch else None,
            created_at=now,
        )
    )
    backup.enqueue(connection, "model", name)


def find(connection: Connection, name: str) -> ModelRow | None:
    """The model of that name, also a deleted one: its name is not used again."""
    return one(connection, _BY_NAME, _from_row, {"name": name})


def count(connection: Connection, owner: str, made_after: datetime) -> int:
    """Count models of the owner that exist, or were created after `made_after`."""
    counts = or_(models.c.deleted_at.is_(None), models.c.created_at > made_after)
    query = select(func.count()).select_from(models).where(models.c.owner == owner, counts)
    return connection.execute(query).scalar_one()


def has_any(connection: Connection) -> bool:
    """Return whether there was ever a model."""
    return connection.execute(select(models.c.name).limit(1)).first() is not None


def lock(connection: Connection, name: str) -> ModelRow | None:
    """Lock the model until this transaction ends, and return it."""
    query = select(models).where(models.c.name == name).with_for_update()
    return one(connection, query, _from_row)


def lock_shared(connection: Connection, name: str) -> None:
    """Lock the model against deletion until this transaction ends; the lock is shared."""
    query = (
        select(models.c.name)
        .where(models.c.name == name)
        .with_for_update(read=True, key_share=True)
    )
    connection.execute(query)


def page(
    connection: Connection, owner: str | None, seek: Seek[str], branched_from: str | None = None
) -> list[ModelRow]:
    """Models by name, without deleted ones; with `branched_from`, branches of that model alone."""
    query = select(models).where(models.c.deleted_at.is_(None))
    if branched_from is not None:
        query = query.where(models.c.branched_from["model"].as_string() == branched_from)
    if owner is not None:
        query = query.where(models.c.owner == owner)
    rows = connection.execute(seek.restrict(query, models.c.name)).mappings()
    return [_from_row(row) for row in rows]


def with_pointer(connection: Connection) -> list[str]:
    """Names of models that have a live.json, or of which it is to be removed."""
    query = select(models.c.name).where(models.c.live_generation > 0, models.c.swept_at.is_(None))
    return list(connection.scalars(query.order_by(models.c.name)))


def advance_head(connection: Connection, name: str, parent: int | None, version: int) -> bool:
    """Compare-and-set: make `version` the newest if `parent` still is. Return whether it was set."""
    assert version == (parent or 0) + 1
    statement = (
        update(models)
        .where(models.c.name == name, models.c.head == (parent or 0))
        .values(head=version)
    )
    return connection.execute(statement).rowcount == 1


def set_encoders(
    connection: Connection, name: str, encoders: Mapping[str, EncoderIdentity]
) -> None:
    """Set by modality which encoder's features the model has; with the model locked."""
    documents = {modality: each.model_dump(mode="json") for modality, each in encoders.items()}
    connection.execute(update(models).where(models.c.name == name).values(encoders=documents))
    backup.enqueue(connection, "model", name)


def set_live(
    connection: Connection,
    name: str,
    version: int,
    generation: int,
    now: datetime,
    traceparent: str | None = None,
) -> None:
    """Set the live version; with the model locked. `traceparent`: of the job or the request that causes it."""
    assert generation >= 1
    changed = connection.execute(
        update(models)
        .where(models.c.name == name)
        .values(
            live_version=version, live_generation=generation, **_next_revision(now, traceparent)
        )
    )
    assert changed.rowcount == 1, "a locked model is there"


def revise(
    connection: Connection, name: str, now: datetime, traceparent: str | None = None
) -> None:
    """Increment the revision of live.json; with the model locked."""
    values = _next_revision(now, traceparent)
    connection.execute(update(models).where(models.c.name == name).values(values))


def set_pointer_written(connection: Connection, name: str, revision: int) -> bool:
    """Record that live.json has this revision. False if that or a later one was recorded."""
    statement = (
        update(models)
        .where(models.c.name == name, models.c.written_revision < revision)
        .values(written_revision=revision)
    )
    return connection.execute(statement).rowcount == 1


def forget_pointer_written(connection: Connection, name: str) -> None:
    """Have live.json written again."""
    connection.execute(update(models).where(models.c.name == name).values(written_revision=0))


def set_gate(connection: Connection, seen: ModelRow, gate: Gate, actor: str, now: datetime) -> None:
    """Set the gate under the next revision, and emit the event; with the model locked."""
    document = gate.model_dump(mode="json")
    values = {"gate": document, "gate_revision": seen.gate_revision + 1}
    connection.execute(update(models).where(models.c.name == seen.name).values(values))
    jobs.reorder(connection, seen.name, seen.gate.priority, gate.priority)
    _emit(connection, seen, "model.gate", now, {"gate": document, "actor": actor})


def add_modality(
    connection: Connection,
    seen: ModelRow,
    spec: ModelSpec,
    modality: str,
    actor: str,
    now: datetime,
) -> None:
    """Store the specification with one more modality, and emit the event; with the model locked."""
    document = spec.model_dump(mode="json")
    connection.execute(update(models).where(models.c.name == seen.name).values(spec=document))
    data = {"modality": modality, **document["modalities"][modality], "actor": actor}
    _emit(connection, seen, "model.modality", now, data)


def drifting(connection: Connection, name: str) -> list[str]:
    """Modalities whose queries drift, by the last event that told."""
    told = (
        select(event_rows.c.data)
        .where(event_rows.c.model == name, event_rows.c.kind == EventKind.MODEL_DRIFTED)
        .order_by(event_rows.c.sequence.desc())
        .limit(1)
    )
    found: list[str] = (connection.scalar(told) or {}).get("drifting", [])
    return found


def set_drifting(
    connection: Connection, seen: ModelRow, report: DriftReport, now: datetime
) -> None:
    """Emit the event, unless the last one told the same; with the model locked."""
    if drifting(connection, seen.name) == report.drifting:
        return
    newest = {name: each.windows[-1] for name, each in report.modalities.items()}
    data = {
        "drifting": report.drifting,
        "level": {name: each.level for name, each in newest.items()},
        "version": max(each.version for each in newest.values()),
    }
    _emit(connection, seen, EventKind.MODEL_DRIFTED, now, data)


def set_deleted(connection: Connection, seen: ModelRow, actor: str, now: datetime) -> None:
    """Mark the model deleted, and emit the event. Its name is not used again, its live.json is to be removed."""
    values = {"deleted_at": now, **_next_revision(now)}
    connection.execute(update(models).where(models.c.name == seen.name).values(values))
    _emit(connection, seen, "model.deleted", now, {"actor": actor})


def _emit(
    connection: Connection, model: ModelRow, kind: str, now: datetime, data: Mapping[str, object]
) -> None:
    emitted = Event(kind=kind, owner=model.owner, model=model.name, data=data)
    events.emit(connection, emitted, now)


def _next_revision(now: datetime, traceparent: str | None = None) -> dict[str, object]:
    revision = models.c.live_revision + 1
    return {"live_revision": revision, "revised_at": now, "traceparent": traceparent}


def is_pointer_unwritten() -> ColumnElement[bool]:
    """Condition: the opposite of `ModelRow.is_pointer_written`."""
    return and_(models.c.live_generation > 0, models.c.written_revision < models.c.live_revision)


def _from_row(row: RowMapping) -> ModelRow:
    values = dict(row)
    values["spec"] = ModelSpec.model_validate(values["spec"])
    values["gate"] = Gate.model_validate(values["gate"])
    values["encoders"] = {
        modality: EncoderIdentity.model_validate(each)
        for modality, each in values["encoders"].items()
    }
    if values["branched_from"] is not None:
        values["branched_from"] = BranchPoint(**values["branched_from"])
    return ModelRow(**values)
