"""Uploads: announced, sent, aborted, used by datasets."""

import unicodedata
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, Field
from sqlalchemy import Connection

from cmcl.contract.dataset import ShardRef
from cmcl.contract.errors import InvalidDataset
from cmcl.contract.modality import Frozen, Sha256
from cmcl.storage import layout
from service.auth.ownership import check_uploads
from service.context import Context
from service.core.errors import Conflict, FieldProblem, NotFound, Unprocessable
from service.core.principal import Principal
from service.database.queries import uploads
from service.database.rows import UploadRow
from service.datasets.intake import upload_of

_LONGEST_FILENAME = 128
# Zero-width joiners, which some scripts need.
_JOINERS = "\u200c\u200d"
# An upload whose file does not arrive within this time is removed.
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
    bytes: int = Field(ge=1, description="size of the file", examples=[104857600])
    sha256: Sha256 | None = Field(
        default=None, description="SHA-256 of the file; if it is given, no other file is taken"
    )


def begin(
    connection: Connection, upload: str, request: UploadRequest, context: Context, owner: str
) -> UploadRow:
    """Create an upload. Raises Unprocessable, and Conflict if it exceeds the owner's quotas."""
    most = context.settings.upload_bytes_max
    if request.bytes > most:
        message = f"permitted: 1 to {most}; split larger data into several shards"
        raise Unprocessable("the file is too large", FieldProblem("bytes", message, request.bytes))
    limit = context.settings.limit(owner, "upload_bytes")
    check_uploads(connection, owner, request.bytes, limit)
    new = UploadRow(
        id=upload,
        owner=owner,
        filename=request.filename,
        bytes=request.bytes,
        sha256=request.sha256,
        state="open",
        file=None,
        created_at=context.clock(),
        completed_at=None,
    )
    uploads.create(connection, new)
    return new


def get_upload(context: Context, upload: str, principal: Principal) -> UploadRow:
    """An upload. Raises NotFound."""
    with context.database.read() as connection:
        return _visible(uploads.find(connection, upload), upload, principal, context)


def get_open(context: Context, upload: str, principal: Principal) -> UploadRow:
    """An upload whose file has not arrived. Raises NotFound and Conflict."""
    found = get_upload(context, upload, principal)
    if found.state != "open":
        raise Conflict(f"upload {upload} is {found.state}: its file has arrived")
    return found


def check_file(upload: UploadRow, size: int, sha256: str) -> None:
    """Check what arrived against what was announced. Raises Conflict."""
    if size != upload.bytes:
        message = f"{size} bytes arrived, {upload.bytes} were announced"
        raise Conflict(f"{message}; send the file again", FieldProblem("bytes", message, size))
    if upload.sha256 not in (None, sha256):
        message = f"the SHA-256 is {sha256}, expected {upload.sha256}"
        raise Conflict(f"{message}; send the file again", FieldProblem("sha256", message, sha256))


def complete(
    context: Context, upload: str, file: str, sha256: str, principal: Principal
) -> UploadRow:
    """Complete an upload with the object that a request has written. Of several requests, the first one does.

    Raises NotFound, and Conflict if another one has sent other bytes. The object is then removed with the upload.
    """
    with context.database.write() as connection:
        found = _visible(uploads.lock(connection, upload), upload, principal, context)
        if found.state == "open":
            uploads.set_complete(connection, upload, file, sha256, context.clock())
            return _existing(uploads.find(connection, upload), upload)
    if found.sha256 != sha256:
        raise Conflict(f"another request has sent another file for upload {upload}")
    return found


def abort(context: Context, upload: str, principal: Principal) -> None:
    """Abort an upload. Raises NotFound, and Conflict while a dataset may still need it."""
    with context.database.write() as connection:
        _visible(uploads.lock(connection, upload), upload, principal, context)
        if uploads.is_needed(connection, upload):
            raise Conflict(
                f"a dataset that is not learned yet uses {upload}; delete the dataset first"
            )
        uploads.abort(connection, upload)


def expires_at(upload: UploadRow) -> datetime:
    """When an open upload, or a complete but unused one, expires."""
    return (upload.completed_at or upload.created_at) + timedelta(hours=EXPIRY_HOURS)


def resolve(context: Context, uri: str) -> ShardRef:
    """The storage address of an upload's file, and the digest that it had when it arrived. Raises InvalidDataset."""
    with context.database.read() as connection:
        found = uploads.find(connection, upload_of(uri) or uri)
    if found is None or found.state != "complete" or found.file is None:
        raise InvalidDataset(f"{uri}: the upload no longer exists; send the file again")
    return ShardRef(
        uri=f"{context.store.uri}/{layout.upload_file(found.id, found.file)}", sha256=found.sha256
    )


def _visible(
    upload: UploadRow | None, name: str, principal: Principal, context: Context
) -> UploadRow:
    """The upload, if this principal can see it and it has not expired. Raises NotFound."""
    found = _existing(upload, name)
    if not principal.sees(found.owner):
        raise _unknown(name)
    if found.state == "open" and expires_at(found) <= context.clock():
        raise NotFound(
            f"the file of upload {name} did not arrive within {EXPIRY_HOURS} hours; create a new one"
        )
    return found


def _existing(upload: UploadRow | None, name: str) -> UploadRow:
    """The upload, unless it was aborted. Raises NotFound."""
    if upload is None or upload.state == "aborted":
        raise _unknown(name)
    return upload


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no upload {name!r}")
