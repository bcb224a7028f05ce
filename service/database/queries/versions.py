"""Versions and promotions."""

from dataclasses import fields
from datetime import datetime

from sqlalchemy import Connection, RowMapping, insert, select, update

from cmcl.contract.version import Recall, VersionManifest
from service.database.queries import backup, events
from service.database.rows import Event, PromotionRecord, VersionOutline, VersionRecord
from service.database.tables import promotions, versions

_OUTLINE = tuple(versions.c[field.name] for field in fields(VersionOutline))


def create(connection: Connection, manifest: VersionManifest, now: datetime) -> None:
    """Insert a version whose files are not stored yet. Raises WriteConflict if its job has one."""
    _insert(connection, manifest, now, job=manifest.job)


def create_copy(
    connection: Connection, manifest: VersionManifest, original: VersionRecord, now: datetime
) -> None:
    """Insert a version of a branch, which uses the files of the original.

    `copied_from` is the model whose folder has them, which for a branch of a branch is not the one that was branched.
    A version that is retired there is retired here, too.
    """
    _insert(connection, manifest, now, copied_from=manifest.files_in)
    if original.retired_at is not None:
        _set_retired(connection, manifest.model, manifest.version, original.retired_at)


def _insert(
    connection: Connection,
    manifest: VersionManifest,
    now: datetime,
    job: str | None = None,
    copied_from: str | None = None,
) -> None:
    document = manifest.model_dump(mode="json")
    connection.execute(
        insert(versions).values(
            model=manifest.model,
            number=manifest.version,
            job=job,
            attempt=manifest.attempt,
            parent=manifest.parent,
            dataset=manifest.dataset,
            dataset_name=manifest.learned[-1].name,
            manifest=document,
            evaluation=document["report"]["evaluation"],
            copied_from=copied_from,
            created_at=now,
        )
    )
    _note(connection, manifest.model, manifest.version)


def find(connection: Connection, model: str, number: int) -> VersionRecord | None:
    """One version."""
    query = select(versions).where(versions.c.model == model, versions.c.number == number)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _record(row)


def page(connection: Connection, model: str, after: int | None, limit: int) -> list[VersionRecord]:
    """Versions of a model by number, after `after`."""
    query = select(versions).where(versions.c.model == model)
    if after is not None:
        query = query.where(versions.c.number > after)
    rows = connection.execute(query.order_by(versions.c.number).limit(limit)).mappings()
    return [_record(row) for row in rows]


def outlines(
    connection: Connection, model: str, after: int | None, limit: int
) -> list[VersionOutline]:
    """`page` without manifests."""
    query = select(*_OUTLINE).where(versions.c.model == model)
    if after is not None:
        query = query.where(versions.c.number > after)
    rows = connection.execute(query.order_by(versions.c.number).limit(limit)).mappings().all()
    return [VersionOutline(**row) for row in rows]


def oldest_unstored(connection: Connection, model: str) -> VersionRecord | None:
    """The oldest version whose files are not stored yet."""
    query = (
        select(versions)
        .where(versions.c.model == model, versions.c.stored_at.is_(None))
        .order_by(versions.c.number)
        .limit(1)
    )
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _record(row)


def set_stored(connection: Connection, model: str, number: int, now: datetime) -> bool:
    """Record that its files are stored. False if that was recorded."""
    statement = (
        update(versions)
        .where(
            versions.c.model == model,
            versions.c.number == number,
            versions.c.stored_at.is_(None),
        )
        .values(stored_at=now)
    )
    _note(connection, model, number)
    return connection.execute(statement).rowcount == 1


def retire(
    connection: Connection, version: VersionOutline, owner: str, actor: str, now: datetime
) -> None:
    """Mark a version retired, and emit the event."""
    _set_retired(connection, version.model, version.number, now)
    retired_now = Event(
        kind="version.retired",
        owner=owner,
        model=version.model,
        version=version.number,
        data={"actor": actor},
    )
    events.emit(connection, retired_now, now)


def _set_retired(connection: Connection, model: str, number: int, now: datetime) -> None:
    connection.execute(
        update(versions)
        .where(versions.c.model == model, versions.c.number == number)
        .values(retired_at=now)
    )
    _note(connection, model, number)


def retired(connection: Connection, model: str) -> tuple[int, ...]:
    """Numbers of retired versions."""
    query = select(versions.c.number).where(
        versions.c.model == model, versions.c.retired_at.is_not(None)
    )
    return tuple(connection.scalars(query.order_by(versions.c.number)))


def evaluations(
    connection: Connection, model: str, up_to: int
) -> list[tuple[int, str, dict[str, Recall]]]:
    """Number, dataset and recalls of each version up to that one."""
    query = (
        select(versions.c.number, versions.c.dataset, versions.c.evaluation)
        .where(versions.c.model == model, versions.c.number <= up_to)
        .order_by(versions.c.number)
    )
    return [
        (number, learned, _recalls(evaluation))
        for number, learned, evaluation in connection.execute(query).all()
    ]


def promotion(connection: Connection, model: str, generation: int) -> PromotionRecord | None:
    """The promotion of that generation."""
    query = select(promotions).where(
        promotions.c.model == model, promotions.c.generation == generation
    )
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else PromotionRecord(**row)


def add_promotion(
    connection: Connection, promotion: PromotionRecord, version: VersionRecord, owner: str
) -> None:
    """Insert a promotion of the version, and emit the event."""
    connection.execute(insert(promotions).values(**vars(promotion)))
    # The job is a detail and not the subject: its own events ended when the version was published.
    data = {
        "generation": promotion.generation,
        "reason": promotion.reason,
        "actor": promotion.actor,
        "job": version.job,
    }
    promoted = Event(
        kind=f"version.{promotion.kind}",
        owner=owner,
        model=version.model,
        dataset=version.manifest.dataset,
        version=version.number,
        data=data,
    )
    events.emit(connection, promoted, promotion.created_at)


def promotion_page(
    connection: Connection, model: str, after: int | None, limit: int
) -> list[PromotionRecord]:
    """Promotions of a model in their order, after `after`."""
    query = select(promotions).where(promotions.c.model == model)
    if after is not None:
        query = query.where(promotions.c.generation > after)
    rows = connection.execute(query.order_by(promotions.c.generation).limit(limit)).mappings()
    return [PromotionRecord(**row) for row in rows]


def _note(connection: Connection, model: str, number: int) -> None:
    backup.enqueue(connection, "version", backup.version_name(model, number))


def _record(row: RowMapping) -> VersionRecord:
    manifest = VersionManifest.model_validate(row["manifest"])
    parsed = {"manifest": manifest, "evaluation": _recalls(row["evaluation"])}
    return VersionRecord(**{**row, **parsed})


def _recalls(evaluation: dict[str, object]) -> dict[str, Recall]:
    return {dataset: Recall.model_validate(recall) for dataset, recall in evaluation.items()}
