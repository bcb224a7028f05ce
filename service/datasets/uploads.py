"""Uploads: created, sent in repeatable parts, aborted, used by datasets.

`service.datasets.upload_completion` combines the parts into a file. A part's object key contains its
digest, so concurrent uploads of the same part cannot mix their bytes.
"""

import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from sqlalchemy import Connection

from cmcl.contract.errors import InvalidDataset
from cmcl.contract.modality import Frozen, Sha256
from cmcl.storage import layout
from cmcl.storage.object_store import PresignedPut
from cmcl.storage.s3 import LARGEST_PART
from service.auth.ownership import check_quota
from service.context import Context
from service.core.errors import Conflict, FieldProblem, NotFound, Unprocessable
from service.core.principal import Principal
from service.core.settings import Settings
from service.database.queries import uploads
from service.database.rows import NewUpload, PartRow, UploadRow
from service.datasets.request import upload_of

_LONGEST_FILENAME = 128
# Zero-width joiners, which some scripts need.
_JOINERS = "\u200c\u200d"
_LINK_SECONDS = 3600
# An upload that is not completed within this time is removed.
EXPIRY_HOURS = 24


def _plain_name(name: str) -> str:
    """The name in NFC. It is for display only: no key or path contains it."""
    name = unicodedata.normalize("NFC", name)
    if not 1 <= len(name) <= _LONGEST_FILENAME:
        raise ValueError(f"permitted: 1 to {_LONGEST_FILENAME} characters")
    if name.strip() != name or name in (".", ".."):
        raise ValueError("permitted: a name without spaces around it, and neither '.' nor '..'")
    if any(char in "/\\" or _is_invisible(char) for char in name):
        raise ValueError("permitted: letters of any language; no slashes, no control characters")
    return name


def _is_invisible(char: str) -> bool:
    """Whether it is a control or format character, a surrogate or a line separator."""
    category = unicodedata.category(char)
    return (category[0] == "C" or category in ("Zl", "Zp")) and char not in _JOINERS


class UploadRequest(Frozen):
    """A request to create an upload."""

    filename: Annotated[str, AfterValidator(_plain_name)] = Field(
        max_length=4 * _LONGEST_FILENAME,
        description="display name: letters of any language, no slashes; at most 128 characters",
        examples=["pairs-000.parquet"],
    )
    bytes: int = Field(ge=1, description="size of the whole file", examples=[104857600])
    sha256: Sha256 | None = Field(
        default=None,
        description="SHA-256 of the whole file, checked on completion; required if direct",
    )
    direct: bool = Field(
        default=False,
        description="send the file to object storage directly, with a signed URL; only if the store "
        "is a bucket",
    )


@dataclass(frozen=True)
class Upload:
    """An upload with its received parts."""

    row: UploadRow
    parts: list[PartRow]


@dataclass(frozen=True)
class ReceivedPart:
    """A part in a file on this machine."""

    path: Path
    part: PartRow


def begin(
    connection: Connection, upload: str, request: UploadRequest, context: Context, owner: str
) -> UploadRow:
    """Create an upload. Raises Unprocessable, and Conflict if it exceeds the owner's quotas."""
    _check_size(request, context.settings)
    _check_quota(connection, request, context.settings, owner)
    if request.direct:
        _check_direct(request, upload, context)
    new = NewUpload(request.filename, request.bytes, request.sha256, request.direct)
    uploads.create(connection, upload, owner, new, context.clock())
    return existing(uploads.find(connection, upload), upload)


def get_upload(context: Context, upload: str, principal: Principal) -> Upload:
    """An upload and its received parts. Raises NotFound."""
    with context.database.read() as connection:
        found = visible(uploads.find(connection, upload), upload, principal, context)
        return Upload(found, uploads.parts(connection, upload))


def check_takes_parts(context: Context, upload: str, principal: Principal) -> None:
    """Check before reading the body. Raises NotFound and Conflict."""
    _check_takes_parts(get_upload(context, upload, principal).row)


def keep_part(
    context: Context, upload: str, received: ReceivedPart, principal: Principal
) -> PartRow:
    """Store a part, replacing an earlier one with the same number. Durable once this returns.

    Raises NotFound; Conflict if it does not fit, or the upload no longer accepts parts.
    """
    part = received.part
    with context.database.read() as connection:
        _check_fits(connection, uploads.find(connection, upload), part)
    context.store.upload(received.path, layout.upload_part(upload, part.number, part.sha256))
    with context.database.write() as connection:
        found = visible(uploads.lock(connection, upload), upload, principal, context)
        _check_takes_parts(found)
        _check_fits(connection, found, part)
        before = uploads.put_part(connection, upload, part)
    if before is not None and before.sha256 != part.sha256:
        context.store.delete(layout.upload_part(upload, before.number, before.sha256))
    return part


def abort(context: Context, upload: str, principal: Principal) -> None:
    """Abort an upload. Raises NotFound, and Conflict while a dataset may still need it."""
    with context.database.write() as connection:
        visible(uploads.lock(connection, upload), upload, principal, context)
        if uploads.is_needed(connection, upload):
            raise Conflict(
                f"a dataset that is not learned yet uses {upload}; delete the dataset first"
            )
        uploads.abort(connection, upload)


def link(context: Context, upload: str) -> PresignedPut | None:
    """A temporary signed URL for the file; None unless the upload is direct and open."""
    with context.database.read() as connection:
        found = uploads.find(connection, upload)
    if found is None or not found.direct or found.sha256 is None or found.state != "open":
        return None
    left = (expires_at(found) - context.clock()).total_seconds()
    seconds = max(1, int(min(_LINK_SECONDS, left)))
    key = layout.upload_direct(upload)
    return context.store.presign_put(key, found.sha256, found.bytes, seconds)


def expires_at(upload: UploadRow) -> datetime:
    """When an open upload, or a completed but unused one, expires."""
    return (upload.completed_at or upload.created_at) + timedelta(hours=EXPIRY_HOURS)


def visible(
    upload: UploadRow | None, name: str, principal: Principal, context: Context
) -> UploadRow:
    """The upload, if this principal can see it and it has not expired. Raises NotFound."""
    found = existing(upload, name)
    if not principal.sees(found.owner):
        raise _unknown(name)
    if found.state != "complete" and expires_at(found) <= context.clock():
        hours = f"{EXPIRY_HOURS:g}"
        raise NotFound(f"upload {name} was not completed within {hours} hours; create a new one")
    return found


def existing(upload: UploadRow | None, name: str) -> UploadRow:
    """The upload, unless it was aborted. Raises NotFound."""
    if upload is None or upload.state == "aborted":
        raise _unknown(name)
    return upload


def resolve(context: Context, uri: str) -> str:
    """The storage address of an upload's file; other addresses unchanged. Raises InvalidDataset."""
    name = upload_of(uri)
    if name is None:
        return uri
    with context.database.read() as connection:
        found = uploads.find(connection, name)
    if found is None or found.state != "complete":
        raise InvalidDataset(f"{uri}: the upload no longer exists; send the file again")
    return f"{context.store.uri}/{layout.upload_file(found.id, found.attempt)}"


def _check_size(request: UploadRequest, settings: Settings) -> None:
    most = (
        min(settings.upload_bytes_max, LARGEST_PART)
        if request.direct
        else settings.upload_bytes_max
    )
    if request.bytes > most:
        message = f"permitted: 1 to {most}; split larger data into several shards"
        raise Unprocessable("the file is too large", FieldProblem("bytes", message, request.bytes))


def _check_quota(
    connection: Connection, request: UploadRequest, settings: Settings, owner: str
) -> None:
    """A soft limit: concurrent requests may exceed it.

    An exact one would make each request wait for every lock on one of the owner's uploads.
    """
    most, permitted = settings.limit(owner, "uploads"), settings.limit(owner, "upload_bytes")
    if most is None and permitted is None:
        return
    number, used = uploads.used(connection, owner)
    check_quota("uploads", number, most, owner, "uploads that are not removed yet")
    if permitted is not None and used + request.bytes > permitted:
        message = (
            f"your uploads use {used} bytes and would use {used + request.bytes}; permitted are "
            f"{permitted}: delete some, or wait until their datasets are learned"
        )
        problem = FieldProblem("bytes", message, request.bytes)
        raise Conflict(message, problem)


def _check_direct(request: UploadRequest, upload: str, context: Context) -> None:
    if request.sha256 is None:
        message = "required for a direct upload: it is signed, and the bucket rejects other bytes"
        raise Unprocessable("sha256 is missing", FieldProblem("sha256", message))
    key = layout.upload_direct(upload)
    if context.store.presign_put(key, request.sha256, request.bytes, _LINK_SECONDS) is None:
        message = "this service stores objects on disk, which has no signed URLs; omit direct"
        raise Unprocessable("direct is not possible", FieldProblem("direct", message, value=True))


def _check_takes_parts(upload: UploadRow) -> None:
    if upload.direct:
        raise Conflict(f"upload {upload.id} is direct: send the file to its signed URL")
    if upload.state != "open":
        raise Conflict(f"upload {upload.id} is {upload.state}: it accepts no more parts")


def _check_fits(connection: Connection, upload: UploadRow | None, part: PartRow) -> None:
    if upload is None:
        return
    total = uploads.bytes_beside(connection, upload.id, part.number) + part.bytes
    if total > upload.bytes:
        message = f"the parts would have {total} bytes; the upload was created with {upload.bytes}"
        raise Conflict(message, FieldProblem("bytes", message, total))


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no upload {name!r}")
