"""Uploads, and the datasets that name them."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from cmcl.contract.api.jobs import JobState
from service.database.engine import one
from service.database.rows import UploadRow, UploadState
from service.database.tables import datasets, jobs, models, upload_uses, uploads

_OPEN: UploadState = "open"
_COMPLETE: UploadState = "complete"
_ABORTED: UploadState = "aborted"


def create(connection: Connection, upload: UploadRow) -> None:
    connection.execute(insert(uploads).values(**vars(upload)))


def find(connection: Connection, upload: str) -> UploadRow | None:
    """The upload of that id, also an aborted one."""
    return one(connection, select(uploads).where(uploads.c.id == upload), _from_row)


def lock(connection: Connection, upload: str) -> UploadRow | None:
    """Lock the upload until this transaction ends, and return it."""
    query = select(uploads).where(uploads.c.id == upload).with_for_update()
    return one(connection, query, _from_row)


def lock_shared(connection: Connection, named: Sequence[str]) -> dict[str, UploadRow]:
    """Lock uploads against being aborted until this transaction ends, and return them by id. The lock is shared."""
    if not named:
        return {}
    # By id, so that two transactions with the same uploads cannot deadlock.
    query = select(uploads).where(uploads.c.id.in_(named)).order_by(uploads.c.id)
    rows = connection.execute(query.with_for_update(read=True)).mappings()
    return {row["id"]: _from_row(row) for row in rows}


def used(connection: Connection, owner: str) -> tuple[int, int]:
    """Number and announced bytes of all uploads of an owner, without aborted ones.

    Takes no lock: uploads of concurrent transactions are not counted.
    """
    query = select(func.count(), func.coalesce(func.sum(uploads.c.bytes), 0)).where(
        uploads.c.owner == owner, uploads.c.state != _ABORTED
    )
    number, size = connection.execute(query).one()
    return int(number), int(size)


def digests(connection: Connection, named: Iterable[str], owner: str | None) -> dict[str, str]:
    """Measured SHA-256 by id, of complete uploads; of one owner, if it is given."""
    query = select(uploads.c.id, uploads.c.sha256).where(
        uploads.c.id.in_(named), uploads.c.state == _COMPLETE
    )
    if owner is not None:
        query = query.where(uploads.c.owner == owner)
    return {row.id: row.sha256 for row in connection.execute(query)}


def filenames(connection: Connection, named: Iterable[str]) -> dict[str, str]:
    query = select(uploads.c.id, uploads.c.filename).where(uploads.c.id.in_(named))
    return {row.id: row.filename for row in connection.execute(query)}


def set_complete(
    connection: Connection, upload: str, file: str, sha256: str, now: datetime
) -> None:
    """Complete it; with the upload locked."""
    values = {"state": _COMPLETE, "file": file, "sha256": sha256, "completed_at": now}
    connection.execute(update(uploads).where(uploads.c.id == upload).values(values))


def abort(connection: Connection, upload: str) -> None:
    """Abort it; its objects are removed later. With the upload locked."""
    connection.execute(update(uploads).where(uploads.c.id == upload).values(state=_ABORTED))


def add_uses(connection: Connection, dataset: str, named: set[str]) -> None:
    """Record that the dataset names these uploads; with them held."""
    query = select(upload_uses.c.upload).where(upload_uses.c.dataset == dataset)
    known = set(connection.scalars(query))
    rows = [{"dataset": dataset, "upload": upload} for upload in sorted(named - known)]
    if rows:
        connection.execute(insert(upload_uses), rows)


def is_needed(connection: Connection, upload: str) -> bool:
    """Return whether a dataset that names it may still be read."""
    return connection.execute(select(_needed(upload))).scalar_one()


def aborted(connection: Connection, limit: int) -> list[str]:
    """Aborted uploads, whose objects are to be removed."""
    query = select(uploads.c.id).where(uploads.c.state == _ABORTED)
    return list(connection.scalars(query.order_by(uploads.c.created_at).limit(limit)))


def expired(connection: Connection, before: datetime, limit: int) -> list[str]:
    """Uploads started (or completed) before that time that no dataset needs."""
    begun = and_(uploads.c.state == _OPEN, uploads.c.created_at < before)
    done = and_(uploads.c.state == _COMPLETE, uploads.c.completed_at < before)
    query = (
        select(uploads.c.id)
        .where(uploads.c.created_at < before, or_(begun, done), ~_needed(uploads.c.id))
        .order_by(uploads.c.created_at)
        .limit(limit)
    )
    return list(connection.scalars(query))


def remove(connection: Connection, upload: str) -> None:
    """Remove the rows of an aborted upload whose objects are removed."""
    connection.execute(delete(upload_uses).where(upload_uses.c.upload == upload))
    connection.execute(delete(uploads).where(uploads.c.id == upload))


def _needed(upload: str | ColumnElement[str]) -> ColumnElement[bool]:
    """Condition: a dataset that names it exists, has no version, and its job can still be retried."""
    is_over = or_(jobs.c.state == JobState.PUBLISHED, jobs.c.swept_at.is_not(None))
    return exists().where(
        upload_uses.c.upload == upload,
        datasets.c.id == upload_uses.c.dataset,
        datasets.c.deleted_at.is_(None),
        models.c.name == datasets.c.model,
        models.c.deleted_at.is_(None),
        ~exists().where(jobs.c.dataset == datasets.c.id, is_over),
    )


def _from_row(row: RowMapping) -> UploadRow:
    return UploadRow(**row)
