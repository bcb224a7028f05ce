"""Queries about models."""

from datetime import datetime

from sqlalchemy import Connection, RowMapping, insert, or_, select, update

from service.database.rows import ModelRecord
from service.database.tables import jobs, models, versions
from service.states import TERMINAL
from workers.contract.model import ModelSpec


def create(connection: Connection, name: str, spec: ModelSpec, now: datetime) -> None:
    """Insert a model without versions. Raises WriteConflict if the name is taken."""
    connection.execute(
        insert(models).values(
            name=name,
            spec=spec.model_dump(mode="json"),
            head=0,
            live_generation=0,
            mirrored_generation=0,
            created_at=now,
        )
    )


def find(connection: Connection, name: str) -> ModelRecord | None:
    """The model of that name."""
    row = connection.execute(select(models).where(models.c.name == name)).mappings().one_or_none()
    return None if row is None else _record(row)


def lock(connection: Connection, name: str) -> ModelRecord | None:
    """The model, and nobody else changes it before this transaction ends."""
    query = select(models).where(models.c.name == name).with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _record(row)


def page(connection: Connection, after: str | None, limit: int) -> list[ModelRecord]:
    """Models in the order of their names, behind `after`."""
    query = select(models).order_by(models.c.name).limit(limit)
    if after is not None:
        query = query.where(models.c.name > after)
    return [_record(row) for row in connection.execute(query).mappings()]


def with_live_version(connection: Connection) -> list[str]:
    """Names of models that have ever been promoted."""
    query = select(models.c.name).where(models.c.live_generation > 0).order_by(models.c.name)
    return list(connection.scalars(query))


def with_work(connection: Connection) -> list[str]:
    """Names of models that have an unfinished job, a version to store or a pointer to mirror."""
    unfinished = select(jobs.c.model).where(jobs.c.state.not_in(TERMINAL))
    unstored = select(versions.c.model).where(versions.c.stored_at.is_(None))
    query = select(models.c.name).where(
        or_(
            models.c.mirrored_generation < models.c.live_generation,
            models.c.name.in_(unfinished),
            models.c.name.in_(unstored),
        )
    )
    return list(connection.scalars(query.order_by(models.c.name)))


def advance_head(connection: Connection, name: str, parent: int | None, version: int) -> bool:
    """Compare-and-set: `version` becomes the newest one if `parent` still is. Whether it did."""
    statement = (
        update(models)
        .where(models.c.name == name, models.c.head == (parent or 0))
        .values(head=version)
    )
    return connection.execute(statement).rowcount == 1


def set_live(connection: Connection, name: str, version: int, generation: int) -> None:
    """Which version answers; call it with the model locked."""
    connection.execute(
        update(models)
        .where(models.c.name == name)
        .values(live_version=version, live_generation=generation)
    )


def set_mirrored(connection: Connection, name: str, generation: int) -> bool:
    """live.json shows this generation. False if somebody has mirrored that or a later one."""
    statement = (
        update(models)
        .where(models.c.name == name, models.c.mirrored_generation < generation)
        .values(mirrored_generation=generation)
    )
    return connection.execute(statement).rowcount == 1


def forget_mirrored(connection: Connection, name: str) -> None:
    """live.json may show anything: mirror again."""
    connection.execute(update(models).where(models.c.name == name).values(mirrored_generation=0))


def _record(row: RowMapping) -> ModelRecord:
    values = dict(row)
    values["spec"] = ModelSpec.model_validate(values["spec"])
    return ModelRecord(**values)
