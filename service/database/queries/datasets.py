"""Queries about datasets."""

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, insert, select, update

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.modality import ModalityPair
from service.database.queries import backup
from service.database.rows import DatasetRecord, Fingerprints
from service.database.tables import datasets


def create(
    connection: Connection,
    dataset: str,
    owner: str,
    request: dict[str, object],
    pair: ModalityPair,
    now: datetime,
) -> None:
    """Insert an open dataset: without a job, and shards can still be added."""
    connection.execute(
        insert(datasets).values(
            id=dataset,
            owner=owner,
            model=request["model"],
            name=request["name"],
            pair_first=pair.first,
            pair_second=pair.second,
            request=request,
            created_at=now,
        )
    )
    backup.enqueue(connection, "dataset", dataset)


def lock(connection: Connection, dataset: str) -> DatasetRecord | None:
    """The dataset, and nobody else changes it before this transaction ends."""
    query = select(datasets).where(datasets.c.id == dataset).with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _record(row)


def set_request(connection: Connection, dataset: str, request: dict[str, object]) -> None:
    """Shards were added; call it with the dataset locked and open."""
    connection.execute(update(datasets).where(datasets.c.id == dataset).values(request=request))
    backup.enqueue(connection, "dataset", dataset)


def seal(connection: Connection, dataset: str, known_by: Fingerprints, now: datetime) -> None:
    """No shard is added any more. Raises WriteConflict if the model has the same already."""
    connection.execute(
        update(datasets)
        .where(datasets.c.id == dataset)
        .values(
            fingerprint=known_by.by_address,
            content_fingerprint=known_by.by_content,
            sealed_at=now,
        )
    )


def set_deleted(connection: Connection, dataset: str, now: datetime) -> None:
    """It is gone for everybody."""
    connection.execute(
        update(datasets).where(datasets.c.id == dataset).values(deleted_at=now, fingerprint=None)
    )


def find(connection: Connection, dataset: str) -> DatasetRecord | None:
    """The dataset of that id."""
    row = (
        connection.execute(select(datasets).where(datasets.c.id == dataset))
        .mappings()
        .one_or_none()
    )
    return None if row is None else _record(row)


def find_same(connection: Connection, model: str, known_by: Fingerprints) -> DatasetRecord | None:
    """The dataset with these very shards that is being learned, or was; by its addresses first."""
    found = _holding(connection, model, datasets.c.fingerprint == known_by.by_address)
    if found is None and known_by.by_content is not None:
        is_same = datasets.c.content_fingerprint == known_by.by_content
        # The condition of the index: what was given up is recognized no more.
        is_held = datasets.c.fingerprint.is_not(None)
        found = _holding(connection, model, and_(is_same, is_held))
    return found


def _holding(
    connection: Connection, model: str, is_same: ColumnElement[bool]
) -> DatasetRecord | None:
    query = select(datasets).where(datasets.c.model == model, is_same)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _record(row)


def page(
    connection: Connection,
    owner: str | None,
    model: str | None,
    after: int | None,
    limit: int,
) -> list[DatasetRecord]:
    """Datasets in the order of their arrival, behind `after`; without those that were deleted."""
    query = select(datasets).where(datasets.c.deleted_at.is_(None))
    if owner is not None:
        query = query.where(datasets.c.owner == owner)
    if model is not None:
        query = query.where(datasets.c.model == model)
    if after is not None:
        query = query.where(datasets.c.sequence > after)
    rows = connection.execute(query.order_by(datasets.c.sequence).limit(limit)).mappings()
    return [_record(row) for row in rows]


def set_manifest(connection: Connection, manifest: DatasetManifest) -> None:
    """The dataset was verified."""
    connection.execute(
        update(datasets)
        .where(datasets.c.id == manifest.dataset)
        .values(manifest=manifest.model_dump(mode="json"))
    )


def release(connection: Connection, dataset: str) -> None:
    """Its job ended without a version: the same dataset can be posted again."""
    connection.execute(update(datasets).where(datasets.c.id == dataset).values(fingerprint=None))


def quarantine(connection: Connection, dataset: str, reason: str) -> None:
    """Its rows cannot be used, and why."""
    connection.execute(
        update(datasets).where(datasets.c.id == dataset).values(quarantine_reason=reason)
    )


def reclaim(connection: Connection, dataset: str, fingerprint: str) -> None:
    """Its job is tried again. Raises WriteConflict if the same dataset was posted meanwhile."""
    connection.execute(
        update(datasets)
        .where(datasets.c.id == dataset)
        .values(fingerprint=fingerprint, quarantine_reason=None)
    )


def _record(row: RowMapping) -> DatasetRecord:
    values = dict(row)
    values["pair"] = ModalityPair(first=values.pop("pair_first"), second=values.pop("pair_second"))
    if values["manifest"] is not None:
        values["manifest"] = DatasetManifest.model_validate(values["manifest"])
    return DatasetRecord(**values)
