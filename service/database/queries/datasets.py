"""Datasets: one row each, from their POST."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, insert, select, update

from cmcl.contract.api.jobs import JobState
from cmcl.contract.dataset import DatasetManifest, EvaluationDataset
from cmcl.contract.modality import ModalityPair
from cmcl.contract.version import EvaluationResult, MeasuredDataset
from service.database.engine import Seek, one
from service.database.queries import backup, events
from service.database.rows import DatasetRow, Event, Fingerprints, random_id
from service.database.tables import datasets, jobs, models


def create(
    connection: Connection,
    owner: str,
    request: dict[str, Any],
    now: datetime,
    known_by: Fingerprints | None,
) -> DatasetRow:
    """Insert a dataset: sealed where it has fingerprints, otherwise open for more shards.

    Raises WriteConflict if the model has the same sealed dataset.
    """
    values = {
        "id": f"ds-{random_id()}",
        "owner": owner,
        "model": request["model"],
        "name": request["name"],
        "pair_first": request["pair"]["first"],
        "pair_second": request["pair"]["second"],
        "request": request,
        "created_at": now,
        **(_sealed(known_by, now) if known_by is not None else {}),
    }
    row = connection.execute(insert(datasets).values(values).returning(datasets)).mappings().one()
    if known_by is None:
        # For a sealed one, the event of its job does this.
        backup.enqueue(connection, "dataset", values["id"])
    return _from_row(row)


def lock(connection: Connection, dataset: str) -> DatasetRow | None:
    """Lock the dataset until this transaction ends, and return it."""
    query = select(datasets).where(datasets.c.id == dataset).with_for_update()
    return one(connection, query, _from_row)


def set_request(connection: Connection, dataset: str, request: dict[str, object]) -> DatasetRow:
    """Store the request with more shards; call it with the dataset locked and open."""
    backup.enqueue(connection, "dataset", dataset)
    return _updated(connection, dataset, {"request": request})


def seal(connection: Connection, dataset: str, known_by: Fingerprints, now: datetime) -> DatasetRow:
    """Seal an open dataset. Raises WriteConflict if the model has the same sealed dataset."""
    return _updated(connection, dataset, _sealed(known_by, now))


def set_deleted(connection: Connection, seen: DatasetRow, actor: str, now: datetime) -> None:
    """Mark a dataset deleted, and emit the event. Its files are to be swept, once no version needs them."""
    _updated(connection, seen.id, {"deleted_at": now, "fingerprint": None, "swept_at": None})
    deleted = Event(
        kind="dataset.deleted",
        owner=seen.owner,
        model=seen.model,
        dataset=seen.id,
        data={"actor": actor},
    )
    events.emit(connection, deleted, now)


def find(connection: Connection, dataset: str) -> DatasetRow | None:
    return one(connection, select(datasets).where(datasets.c.id == dataset), _from_row)


def find_same(connection: Connection, model: str, known_by: Fingerprints) -> DatasetRow | None:
    """Find the sealed dataset with the same shards, by address first and then by content."""
    found = _holding(connection, model, datasets.c.fingerprint == known_by.by_address)
    if found is None and known_by.by_content is not None:
        is_same = datasets.c.content_fingerprint == known_by.by_content
        # The condition of the index: a dataset whose job ended without a version is not recognized.
        is_held = datasets.c.fingerprint.is_not(None)
        found = _holding(connection, model, and_(is_same, is_held))
    return found


def _holding(connection: Connection, model: str, is_same: ColumnElement[bool]) -> DatasetRow | None:
    query = select(datasets).where(datasets.c.model == model, is_same)
    return one(connection, query, _from_row)


def page(
    connection: Connection, owner: str | None, model: str | None, seek: Seek[int]
) -> list[DatasetRow]:
    """Datasets in the order of their arrival, without deleted ones."""
    query = select(datasets).where(datasets.c.deleted_at.is_(None))
    if owner is not None:
        query = query.where(datasets.c.owner == owner)
    if model is not None:
        query = query.where(datasets.c.model == model)
    rows = connection.execute(seek.restrict(query, datasets.c.sequence)).mappings()
    return [_from_row(row) for row in rows]


# States of the job of a dataset that is measured. A dataset whose job has failed or was cancelled is not measured, until the job is retried.
_MEASURED = (JobState.PREPARED, JobState.SUBMITTING, JobState.RUNNING, JobState.EVALUATED)


def measured_only(connection: Connection, model: str) -> list[EvaluationDataset]:
    """Datasets that the versions of a model are measured on without learning them, in the order of their arrival.

    A branch has those of its source, as far as they were posted before it was branched and neither they nor the source
    were deleted since.
    """
    found: list[EvaluationDataset] = []
    name: str | None = model
    before: datetime | None = None
    while name is not None:
        found = [*_measured_of(connection, name, before), *found]
        origin = select(models.c.branched_from, models.c.created_at).where(models.c.name == name)
        branched_from, before = connection.execute(origin).one()
        name = branched_from["model"] if branched_from else None
    return found


def _measured_of(
    connection: Connection, model: str, before: datetime | None
) -> list[EvaluationDataset]:
    columns = (datasets.c.id, datasets.c.name, datasets.c.pair_first, datasets.c.pair_second)
    query = (
        select(*columns)
        .join(jobs, jobs.c.dataset == datasets.c.id)
        .join(models, models.c.name == datasets.c.model)
        .where(
            datasets.c.model == model,
            jobs.c.kind == "evaluate",
            jobs.c.state.in_(_MEASURED),
            datasets.c.deleted_at.is_(None),
            models.c.deleted_at.is_(None),
        )
    )
    if before is not None:
        query = query.where(datasets.c.created_at < before)
    return [
        EvaluationDataset(
            dataset=row.id,
            name=row.name,
            pair=ModalityPair(first=row.pair_first, second=row.pair_second),
        )
        for row in connection.execute(query.order_by(datasets.c.sequence))
    ]


def measured_after(connection: Connection, model: str) -> dict[int, list[MeasuredDataset]]:
    """Datasets that are measured only and were posted when a version was live, with their recall in it, by its number.

    The manifest of the version has none of them: it was written before.
    """
    columns = (datasets.c.id, datasets.c.name, datasets.c.pair_first, datasets.c.pair_second)
    query = (
        select(*columns, jobs.c.evaluation)
        .join(jobs, jobs.c.dataset == datasets.c.id)
        .where(
            datasets.c.model == model, jobs.c.kind == "evaluate", jobs.c.state == JobState.EVALUATED
        )
    )
    found: dict[int, list[MeasuredDataset]] = {}
    for row in connection.execute(query.order_by(datasets.c.sequence)):
        result = EvaluationResult.model_validate(row.evaluation)
        if result.version is not None:
            pair = ModalityPair(first=row.pair_first, second=row.pair_second)
            measured = MeasuredDataset(
                dataset=row.id, name=row.name, pair=pair, recall=result.recall, note=result.note
            )
            found.setdefault(result.version, []).append(measured)
    return found


def set_manifest(connection: Connection, manifest: DatasetManifest) -> None:
    """Store the manifest of a dataset that was validated."""
    connection.execute(
        update(datasets)
        .where(datasets.c.id == manifest.dataset)
        .values(manifest=manifest.model_dump(mode="json"))
    )


def release(connection: Connection, dataset: str) -> None:
    """Let the same dataset be posted again: its job ended without a version."""
    connection.execute(update(datasets).where(datasets.c.id == dataset).values(fingerprint=None))


def quarantine(connection: Connection, dataset: str, reason: str) -> None:
    connection.execute(
        update(datasets).where(datasets.c.id == dataset).values(quarantine_reason=reason)
    )


def reclaim(connection: Connection, dataset: str, fingerprint: str) -> None:
    """Recognize it again, for a retry of its job. Raises WriteConflict if the same was posted in between."""
    connection.execute(
        update(datasets)
        .where(datasets.c.id == dataset)
        .values(fingerprint=fingerprint, quarantine_reason=None)
    )


def _sealed(known_by: Fingerprints, now: datetime) -> dict[str, object]:
    return {
        "fingerprint": known_by.by_address,
        "content_fingerprint": known_by.by_content,
        "sealed_at": now,
    }


def _updated(connection: Connection, dataset: str, values: Mapping[str, object]) -> DatasetRow:
    statement = update(datasets).where(datasets.c.id == dataset).values(**values)
    return _from_row(connection.execute(statement.returning(datasets)).mappings().one())


def _from_row(row: RowMapping) -> DatasetRow:
    values = dict(row)
    values["pair"] = ModalityPair(first=values.pop("pair_first"), second=values.pop("pair_second"))
    if values["manifest"] is not None:
        values["manifest"] = DatasetManifest.model_validate(values["manifest"])
    return DatasetRow(**values)
