"""Versions and promotions."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Self

from sqlalchemy import Connection, Row, RowMapping, bindparam, insert, select, update

from cmcl.contract.version import Recall, VersionManifest, VersionReport
from cmcl.storage.versions import digest_of_manifest
from service.database.engine import Seek, one
from service.database.queries import backup, events
from service.database.rows import Event, FiguresByDataset, PromotionRow, VersionOutline, VersionRow
from service.database.tables import models, promotions, versions

# Rows of measurements of one version.
MOST_EVALUATIONS = 100

_OUTLINE, _RECORD = (
    tuple(versions.c[each.name] for each in fields(kind) if each.name != "figures")
    for kind in (VersionOutline, VersionRow)
)
_OLDEST_UNSTORED = (
    select(*_RECORD)
    .where(versions.c.model == bindparam("model"), versions.c.stored_at.is_(None))
    .order_by(versions.c.number)
    .limit(1)
)


def create(connection: Connection, manifest: VersionManifest, now: datetime) -> None:
    """Insert a version whose manifest is not stored yet. Raises WriteConflict if its job has one."""
    _insert(connection, manifest, now, {"job": manifest.job})


def create_copy(
    connection: Connection, manifest: VersionManifest, original: VersionRow, now: datetime
) -> None:
    """Insert a version of a branch. One that is retired in the original's model is retired here, too."""
    as_there = {"retired_at": original.retired_at, "swept_at": original.swept_at}
    _insert(connection, manifest, now, as_there)


def _insert(
    connection: Connection, manifest: VersionManifest, now: datetime, columns: Mapping[str, object]
) -> None:
    assert manifest.version >= 1
    connection.execute(
        insert(versions).values(
            model=manifest.model,
            number=manifest.version,
            attempt=manifest.attempt,
            parent=manifest.parent,
            created_at=now,
            **from_manifest(manifest),
            **columns,
        )
    )
    backup.enqueue(connection, "model", manifest.model)


def from_manifest(manifest: VersionManifest) -> dict[str, object]:
    """Its digest, and the columns `OF_THE_MANIFEST`: the manifest, and what lists and histories need of it."""
    document = manifest.model_dump(mode="json")
    report, line = manifest.report, manifest.subject
    recalls = [recall.at_1 for recall in report.evaluation.values()]
    drifts = [drift.since_learned for drift in report.drift.values()]
    return {
        "manifest": document,
        "manifest_sha256": digest_of_manifest(manifest),
        "kind": manifest.kind,
        "copied_from": manifest.copied_from,
        "dataset": manifest.dataset,
        "dataset_name": line.name if manifest.merged is None else str(manifest.merged),
        "pair_first": line.pair.first,
        "pair_second": line.pair.second,
        "evaluation": document["report"]["evaluation"],
        "mean_recall": sum(recalls) / len(recalls) if recalls else None,
        "max_drift": max(drifts, default=None),
        "capacity": document["report"]["capacity"],
        "figures": _figures(report),
    }


def _figures(report: VersionReport) -> FiguresByDataset:
    evaluation, quality = report.evaluation, report.quality
    return {
        "recall": {name: _rounded(each.at_1) for name, each in evaluation.items()},
        "recall_at_10": {name: _rounded(each.at_10) for name, each in evaluation.items()},
        "drift": {name: _rounded(each.since_learned) for name, each in report.drift.items()},
        "quality": {name: _rounded(each.now) for name, each in quality.items()},
        "best": {
            name: _rounded(each.best) for name, each in quality.items() if each.best is not None
        },
        "evaluation_only": {
            each.dataset: _rounded(each.recall.at_1)
            for each in report.evaluation_only
            if each.recall is not None
        },
    }


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")


def find(connection: Connection, model: str, number: int) -> VersionRow | None:
    query = select(*_RECORD).where(versions.c.model == model, versions.c.number == number)
    return one(connection, query, _from_row)


def page(connection: Connection, model: str, after: int | None, limit: int) -> list[VersionRow]:
    """Versions of a model by number, after `after`."""
    query = select(*_RECORD).where(versions.c.model == model)
    if after is not None:
        query = query.where(versions.c.number > after)
    rows = connection.execute(query.order_by(versions.c.number).limit(limit)).mappings()
    return [_from_row(row) for row in rows]


@dataclass(frozen=True)
class Part:
    """A page of versions; only every n-th one, counted back from the newest."""

    seek: Seek[int]
    newest: int = 0
    every: int = 1


def outlines(
    connection: Connection, model: str, part: Part, *, by_dataset: bool = False
) -> list[VersionOutline]:
    """Versions of a model by number, without manifests; `by_dataset`: with their measurements of each dataset."""
    columns = (*_OUTLINE, versions.c.figures) if by_dataset else _OUTLINE
    query = select(*columns).where(versions.c.model == model)
    if part.every > 1:
        query = query.where((part.newest - versions.c.number) % part.every == 0)
    rows = connection.execute(part.seek.restrict(query, versions.c.number)).mappings().all()
    return [VersionOutline(**row) for row in rows]


def recent_recalls(
    connection: Connection, names: Collection[str], most: int
) -> dict[str, list[tuple[int, float | None]]]:
    """Number and mean recall of the newest `most` versions of each of these models, oldest first."""
    query = (
        select(versions.c.model, versions.c.number, versions.c.mean_recall)
        .join(models, models.c.name == versions.c.model)
        .where(models.c.name.in_(names), versions.c.number > models.c.head - most)
        .order_by(versions.c.model, versions.c.number)
    )
    found: dict[str, list[tuple[int, float | None]]] = {}
    for model, number, recall in connection.execute(query):
        found.setdefault(model, []).append((number, recall))
    return found


@dataclass(frozen=True)
class Capacities:
    """HeadCapacity by modality in a version, as documents, and the pair that the version learned."""

    number: int
    pair: tuple[str, str]
    by_modality: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        return cls(row.number, (row.pair_first, row.pair_second), row.capacity)


_CAPACITIES = tuple(
    versions.c[name] for name in ("number", "pair_first", "pair_second", "capacity")
)


def newest_capacities(connection: Connection, model: str, limit: int) -> list[Capacities]:
    """The newest versions of a model, oldest first."""
    query = select(*_CAPACITIES).where(versions.c.model == model)
    rows = connection.execute(query.order_by(versions.c.number.desc()).limit(limit)).all()
    return [Capacities.of(row) for row in reversed(rows)]


def capacities_after_own(
    connection: Connection, model: str, modality: str, limit: int
) -> list[Capacities]:
    """The newest versions of a model whose dataset had the modality, oldest first.

    A lookup for each side of the pair, because one index cannot have both in order.
    """
    found: list[Capacities] = []
    for side in (versions.c.pair_first, versions.c.pair_second):
        query = select(*_CAPACITIES).where(versions.c.model == model, side == modality)
        rows = connection.execute(query.order_by(versions.c.number.desc()).limit(limit))
        found += map(Capacities.of, rows)
    return sorted(found, key=lambda each: each.number)[-limit:]


def oldest_unstored(connection: Connection, model: str) -> VersionRow | None:
    """The oldest version whose manifest is not stored yet."""
    return one(connection, _OLDEST_UNSTORED, _from_row, {"model": model})


def set_stored(connection: Connection, model: str, number: int, now: datetime) -> bool:
    """Record that its manifest is stored. False if that was recorded."""
    statement = (
        update(versions)
        .where(
            versions.c.model == model, versions.c.number == number, versions.c.stored_at.is_(None)
        )
        .values(stored_at=now)
    )
    backup.enqueue(connection, "model", model)
    return connection.execute(statement).rowcount == 1


def retire(
    connection: Connection, version: VersionOutline, owner: str, actor: str, now: datetime
) -> None:
    assert version.retired_at is None, "it would be retired twice"
    connection.execute(
        update(versions)
        .where(versions.c.model == version.model, versions.c.number == version.number)
        .values(retired_at=now)
    )
    retired_now = Event(
        kind="version.retired",
        owner=owner,
        model=version.model,
        version=version.number,
        data={"actor": actor},
    )
    events.emit(connection, retired_now, now)


def retired(connection: Connection, model: str) -> tuple[int, ...]:
    query = select(versions.c.number).where(
        versions.c.model == model, versions.c.retired_at.is_not(None)
    )
    return tuple(connection.scalars(query.order_by(versions.c.number)))


def evaluations(
    connection: Connection, model: str, up_to: int
) -> list[tuple[int, str | None, dict[str, Recall]]]:
    """Number, dataset (None: it learned none) and recalls of each version up to that one; of many only every n-th,
    counted back from that one.

    A version of a model has measured all datasets before it, so that all rows of a thousand are half a million values.
    """
    every = math.ceil(up_to / MOST_EVALUATIONS)
    query = (
        select(versions.c.number, versions.c.dataset, versions.c.evaluation)
        .where(versions.c.model == model, versions.c.number <= up_to)
        .where((up_to - versions.c.number) % every == 0)
        .order_by(versions.c.number)
    )
    found = connection.execute(query).all()
    assert len(found) <= MOST_EVALUATIONS
    return [(number, learned, _recalls(evaluation)) for number, learned, evaluation in found]


def promotion(connection: Connection, model: str, generation: int) -> PromotionRow | None:
    query = select(promotions).where(
        promotions.c.model == model, promotions.c.generation == generation
    )
    return one(connection, query, lambda row: PromotionRow(**row))


def add_promotion(
    connection: Connection, promotion: PromotionRow, version: VersionRow, owner: str
) -> None:
    """Insert a promotion of the version, and emit the event."""
    assert (promotion.model, promotion.version) == (version.model, version.number)
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


def promotion_page(connection: Connection, model: str, seek: Seek[int]) -> list[PromotionRow]:
    query = select(promotions).where(promotions.c.model == model)
    rows = connection.execute(seek.restrict(query, promotions.c.generation)).mappings()
    return [PromotionRow(**row) for row in rows]


def _from_row(row: RowMapping) -> VersionRow:
    return VersionRow(**{**row, "manifest": VersionManifest.model_validate(row["manifest"])})


def _recalls(evaluation: dict[str, object]) -> dict[str, Recall]:
    return {dataset: Recall.model_validate(recall) for dataset, recall in evaluation.items()}
