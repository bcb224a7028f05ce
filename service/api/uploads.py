"""Uploads: files that the service cannot read by address, each announced and then sent as one body."""

import hashlib
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from cmcl.contract.api.datasets import Upload
from cmcl.storage import layout, object_store
from service.api.dependencies import (
    BYTES,
    ContextDep,
    IdempotencyKeyDep,
    Reader,
    UploadPath,
    Writer,
)
from service.api.idempotency import respond, response_row
from service.api.limits import BudgetsDep, pieces_of
from service.database.rows import ResponseRow, UploadRow, random_id
from service.datasets import uploads
from service.datasets.intake import uri_of
from service.datasets.uploads import UploadRequest

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

# Written at once: small enough for many at a time, large enough to be worth a thread.
_BLOCK_BYTES = 1 << 20


_RAW_BODY = {
    "requestBody": {
        "required": True,
        "content": {BYTES: {"schema": {"type": "string", "format": "binary"}}},
    }
}


def to_upload(found: UploadRow) -> Upload:
    more = {"uri": uri_of(found), "expires_at": uploads.expires_at(found)}
    return Upload.model_validate(vars(found) | more)


@router.post("", status_code=201, response_model=Upload)
def post_upload(
    body: UploadRequest, principal: Writer, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Announce a file. Then send it."""

    def effect(connection: Connection) -> ResponseRow:
        name = f"up-{random_id()}"
        begun = uploads.begin(connection, name, body, context, principal.owns_as)
        return response_row(key, 201, to_upload(begun), f"/v1/uploads/{begun.id}")

    return respond(context, key, effect)


@router.get("/{upload}")
def read_upload(upload: UploadPath, principal: Reader, context: ContextDep) -> Upload:
    """Read an upload."""
    return to_upload(uploads.get_upload(context, upload, principal))


@router.put("/{upload}/file", openapi_extra=_RAW_BODY)
async def put_file(
    upload: UploadPath,
    principal: Writer,
    context: ContextDep,
    request: Request,
    budgets: BudgetsDep,
) -> Upload:
    """Send the file as the body. The upload is complete once this responds.

    409 if it is not the file that was announced, and if it has arrived before. After an interruption, send it again.
    429 if too many files are being received; `Retry-After` says when to send it again.
    """
    found = await run_in_threadpool(uploads.get_open, context, upload, principal)
    name = random_id()
    with budgets.files.held(principal.owns_as, 1):
        pieces = pieces_of(request)
        writer = context.store.writer(layout.upload_file(upload, name), found.bytes)
        async with contextmanager_in_threadpool(writer) as target:
            sha256 = await _receive(pieces, found, target)
    done = await run_in_threadpool(uploads.complete, context, upload, name, sha256, principal)
    return to_upload(done)


@router.delete("/{upload}", status_code=204)
def delete_upload(upload: UploadPath, principal: Writer, context: ContextDep) -> None:
    """Abort an upload. 409 while a dataset that names it is not learned."""
    uploads.abort(context, upload, principal)


async def _receive(
    pieces: AsyncIterator[bytes], upload: UploadRow, target: object_store.Writer
) -> str:
    """Write the file, and return its SHA-256. Raises Conflict if it is not the one that was announced."""
    digest, size, waiting = hashlib.sha256(), 0, bytearray()

    def write(block: bytes) -> None:
        digest.update(block)
        target.write(block)

    async for piece in pieces:
        size += len(piece)
        waiting += piece
        if size > upload.bytes:
            uploads.check_file(upload, size, "")
        if len(waiting) >= _BLOCK_BYTES:
            await run_in_threadpool(write, bytes(waiting))
            waiting.clear()
    await run_in_threadpool(write, bytes(waiting))
    uploads.check_file(upload, size, digest.hexdigest())
    return digest.hexdigest()
