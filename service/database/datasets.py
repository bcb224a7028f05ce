"""Queries about datasets."""

from datetime import datetime

from sqlalchemy import Connection, RowMapping, insert, select, update

from service.database.rows import DatasetRecord
from service.database.tables import datasets
from workers.contract.dataset import DatasetManifest
from workers.contract.modality import ModalityPair


def create(
    connection: Connection,
    dataset: str,
    request: dict[str, object],
    pair: ModalityPair,
    fingerprint: str,
    now: datetime,
) -> None:
    """Insert a dataset. Raises WriteConflict if the model has it already."""
    connection.execute(
        insert(datasets).values(
            id=dataset,
            model=request["model"],
            name=request["name"],
            pair_first=pair.first,
            pair_second=pair.second,
            request=request,
            fingerprint=fingerprint,
            created_at=now,
        )
    )


def find(connection: Connection, dataset: str) -> DatasetRecord | None:
    """The dataset of that id."""
    row = (
        connection.execute(select(datasets).where(datasets.c.id == dataset))
        .mappings()
        .one_or_none()
    )
    return None if row is None else _record(row)


def find_same(connection: Connection, model: str, fingerprint: str) -> DatasetRecord | None:
    """The dataset with these very shards that is being learned, or was."""
    query = select(datasets).where(datasets.c.model == model, datasets.c.fingerprint == fingerprint)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _record(row)


def page(
    connection: Connection, model: str | None, after: int | None, limit: int
) -> list[DatasetRecord]:
    """Datasets in the order of their arrival, behind `after`."""
    query = select(datasets).order_by(datasets.c.sequence).limit(limit)
    if model is not None:
        query = query.where(datasets.c.model == model)
    if after is not None:
        query = query.where(datasets.c.sequence > after)
    return [_record(row) for row in connection.execute(query).mappings()]


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
