"""Uploads, their parts, and the datasets that name them.

An upload's `attempt` is the fence of its completion: each attempt has the next number.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Update,
    and_,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from service.core.states import JobState
from service.database.rows import NewUpload, PartRow, UploadRow, UploadState
from service.database.tables import datasets, jobs, models, upload_parts, upload_uses, uploads

_OPEN: UploadState = "open"
_COMPLETING: UploadState = "completing"
_COMPLETE: UploadState = "complete"
_ABORTED: UploadState = "aborted"


def create(connection: Connection, upload: str, owner: str, new: NewUpload, now: datetime) -> None:
    """Insert an upload without parts."""
    values = vars(new) | {"id": upload, "owner": owner, "state": _OPEN, "attempt": 0}
    connection.execute(insert(uploads).values(created_at=now, **values))


def find(connection: Connection, upload: str) -> UploadRow | None:
    """The upload of that id, also an aborted one."""
    row = connection.execute(select(uploads).where(uploads.c.id == upload)).mappings().first()
    return None if row is None else _from_row(row)


def lock(connection: Connection, upload: str) -> UploadRow | None:
    """Lock the upload until this transaction ends, and return it."""
    query = select(uploads).where(uploads.c.id == upload).with_for_update()
    row = connection.execute(query).mappings().first()
    return None if row is None else _from_row(row)


def hold(connection: Connection, named: Sequence[str]) -> dict[str, UploadRow]:
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
    """File names by id."""
    query = select(uploads.c.id, uploads.c.filename).where(uploads.c.id.in_(named))
    return {row.id: row.filename for row in connection.execute(query)}


def parts(connection: Connection, upload: str) -> list[PartRow]:
    """The parts that arrived, in their order."""
    query = (
        select(upload_parts.c.number, upload_parts.c.bytes, upload_parts.c.sha256)
        .where(upload_parts.c.upload == upload)
        .order_by(upload_parts.c.number)
    )
    return [PartRow(**row) for row in connection.execute(query).mappings()]


def bytes_beside(connection: Connection, upload: str, number: int) -> int:
    """Bytes of all other parts."""
    query = select(func.coalesce(func.sum(upload_parts.c.bytes), 0)).where(
        upload_parts.c.upload == upload, upload_parts.c.number != number
    )
    return int(connection.execute(query).scalar_one())


def put_part(connection: Connection, upload: str, part: PartRow) -> PartRow | None:
    """Insert a part, and return the one that it replaces; with the upload locked."""
    same = and_(upload_parts.c.upload == upload, upload_parts.c.number == part.number)
    query = select(upload_parts.c.number, upload_parts.c.bytes, upload_parts.c.sha256).where(same)
    before = connection.execute(query).mappings().first()
    connection.execute(delete(upload_parts).where(same))
    connection.execute(insert(upload_parts).values(upload=upload, **vars(part)))
    return None if before is None else PartRow(**before)


def forget_part(connection: Connection, upload: str, part: PartRow) -> None:
    """Remove a part whose object is lost: it must be sent again."""
    connection.execute(
        delete(upload_parts).where(
            upload_parts.c.upload == upload,
            upload_parts.c.number == part.number,
            upload_parts.c.sha256 == part.sha256,
        )
    )


def claim(connection: Connection, seen: UploadRow, until: datetime) -> None:
    """Start the next attempt to complete it; with the upload locked."""
    connection.execute(
        update(uploads)
        .where(uploads.c.id == seen.id)
        .values(state=_COMPLETING, attempt=seen.attempt + 1, lease_until=until)
    )


def set_complete(connection: Connection, claimed: UploadRow, sha256: str, now: datetime) -> bool:
    """Complete it. False if another attempt has started, or it was aborted."""
    statement = _as_claimed(claimed).values(
        state=_COMPLETE, sha256=sha256, completed_at=now, lease_until=None
    )
    return connection.execute(statement).rowcount == 1


def reopen(connection: Connection, claimed: UploadRow) -> None:
    """Reopen it after a failed attempt: parts can be sent again."""
    connection.execute(_as_claimed(claimed).values(state=_OPEN, lease_until=None))


def abort(connection: Connection, upload: str) -> None:
    """Abort it; its objects are removed later. With the upload locked."""
    connection.execute(
        update(uploads).where(uploads.c.id == upload).values(state=_ABORTED, lease_until=None)
    )


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
    begun = and_(uploads.c.state.in_((_OPEN, _COMPLETING)), uploads.c.created_at < before)
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
    for table, key in ((upload_parts, "upload"), (upload_uses, "upload"), (uploads, "id")):
        connection.execute(delete(table).where(table.c[key] == upload))


def _needed(upload: str | ColumnElement[str]) -> ColumnElement[bool]:
    """Condition: a dataset that names it exists, is not swept, and has no version."""
    learned = and_(jobs.c.dataset == datasets.c.id, jobs.c.state == JobState.PUBLISHED)
    return exists().where(
        upload_uses.c.upload == upload,
        datasets.c.id == upload_uses.c.dataset,
        datasets.c.deleted_at.is_(None),
        datasets.c.swept_at.is_(None),
        models.c.name == datasets.c.model,
        models.c.deleted_at.is_(None),
        ~exists().where(learned),
    )


def _as_claimed(claimed: UploadRow) -> Update:
    return update(uploads).where(
        uploads.c.id == claimed.id,
        uploads.c.attempt == claimed.attempt,
        uploads.c.state == _COMPLETING,
    )


def _from_row(row: RowMapping) -> UploadRow:
    return UploadRow(**row)
