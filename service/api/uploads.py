"""Uploads: files sent in parts through the service, or directly to object storage by a signed link."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from cmcl.storage.s3 import MOST_PARTS, SMALLEST_PART
from service.api.concurrency import FairSemaphore, UploadSlots
from service.api.dependencies import (
    BYTES,
    ContextDep,
    IdempotencyKeyDep,
    Reader,
    UploadPath,
    Writer,
)
from service.api.idempotency import Outcome, respond_long, response_row, run_once
from service.api.spool import Spooled, spooled
from service.context import Context
from service.core.errors import Conflict, FieldProblem, Unprocessable
from service.core.principal import EVERY_OWNER
from service.database.rows import PartRow, ResponseRow, random_id
from service.datasets import upload_completion, uploads
from service.datasets.request import uri_of
from service.datasets.uploads import ReceivedPart, Upload, UploadRequest

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

# Completing reads whole files, so it has slots of its own, shared fairly between owners.
COMPLETED_AT_ONCE = 4
COMPLETIONS_WAITING_OF_OWNER = 256


def get_completions(request: Request) -> FairSemaphore:
    """Slots for completions; a request that waits for one takes no thread."""
    slots: FairSemaphore = request.app.state.completions
    return slots


def get_upload_slots(request: Request) -> UploadSlots:
    """Slots for the bodies of parts."""
    slots: UploadSlots = request.app.state.upload_slots
    return slots


UploadSlotsDep = Annotated[UploadSlots, Depends(get_upload_slots)]
CompletionsDep = Annotated[FairSemaphore, Depends(get_completions)]
PartPath = Annotated[int, Path(alias="number", ge=1, le=MOST_PARTS)]
_RAW_BODY = {
    "requestBody": {
        "required": True,
        "content": {BYTES: {"schema": {"type": "string", "format": "binary"}}},
    }
}


class PartView(BaseModel):
    """A part that arrived."""

    number: int
    bytes: int
    sha256: str


class PresignedView(BaseModel):
    """A signed request that stores the file; send it with exactly these headers before it expires."""

    method: Literal["PUT"]
    url: str
    headers: Mapping[str, str]
    expires_at: datetime


class UploadView(BaseModel):
    """An upload as it was announced, and the parts that arrived."""

    id: str
    filename: str
    bytes: int = Field(description="size of the whole file")
    sha256: str | None = Field(description="as announced; as measured once complete")
    direct: bool
    state: Literal["open", "completing", "complete"]
    uri: str | None = Field(
        description="address for the shard of a dataset; null before it is complete"
    )
    parts: list[PartView] = Field(description="parts that arrived")
    part_bytes_min: int = Field(description="minimum size of every part but the last")
    part_bytes_max: int
    presigned: PresignedView | None = Field(
        default=None, description="for a direct upload: only in the response that creates the link"
    )
    created_at: datetime
    completed_at: datetime | None
    expires_at: datetime = Field(
        description="deadline to complete it, and once complete, to name it in a dataset"
    )

    @classmethod
    def of(cls, context: Context, upload: Upload) -> "UploadView":
        """Create it from a record and its parts."""
        found = upload.row
        more = {
            "uri": uri_of(found),
            "parts": [vars(part) for part in upload.parts],
            "part_bytes_min": SMALLEST_PART,
            "part_bytes_max": context.tuning.upload_part_bytes_max,
            "expires_at": uploads.expires_at(found),
        }
        return cls.model_validate(vars(found) | more)


@router.post("", status_code=201, response_model=UploadView)
def post_upload(
    body: UploadRequest, principal: Writer, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Announce a file. Then send its parts or, if it is direct, the file to the signed link."""

    def effect(connection: Connection) -> ResponseRow:
        name = f"up-{random_id()}"
        begun = uploads.begin(connection, name, body, context, principal.owns_as)
        view = UploadView.of(context, Upload(begun, []))
        return response_row(key, 201, view, f"/v1/uploads/{begun.id}")

    return _with_link(context, run_once(context, key, effect)).response()


@router.get("/{upload}")
def read_upload(upload: UploadPath, principal: Reader, context: ContextDep) -> UploadView:
    """Read an upload with the parts that arrived, to resume it."""
    return UploadView.of(context, uploads.get_upload(context, upload, principal))


@router.put("/{upload}/parts/{number}", openapi_extra=_RAW_BODY)
async def put_part(
    upload: UploadPath,
    number: PartPath,
    principal: Writer,
    context: ContextDep,
    request: Request,
    slots: UploadSlotsDep,
) -> PartView:
    """Send one part as the body. It is stored once this responds; sending it again is safe.

    Parts are numbered 1, 2, 3 in the order of the file, and can be sent in any order, also concurrently. A
    `Content-Digest: sha-256=:...:` is checked. All parts but the last have at least 5 MiB. 429 if too many parts are
    being received; `Retry-After` says when to send it again.
    """
    await run_in_threadpool(uploads.check_takes_parts, context, upload, principal)
    with slots.one(principal.owns_as) as slot:
        async with spooled(slot.watch(request)) as body:
            received = _received(body, number, context)
            kept = await run_in_threadpool(uploads.keep_part, context, upload, received, principal)
    return PartView(**vars(kept))


@router.post("/{upload}/complete", response_model=UploadView)
async def complete_upload(
    request: Request,
    upload: UploadPath,
    principal: Writer,
    context: ContextDep,
    key: IdempotencyKeyDep,
    completions: CompletionsDep,
) -> JSONResponse:
    """Assemble the file from its parts and verify it. Takes as long as reading the file.

    Completing it again returns the same. 409 while another request completes it, and if parts are missing or differ
    from what was announced: send those, and complete it again.
    """

    def work() -> ResponseRow:
        upload_completion.complete(context, upload, principal)
        return response_row(
            key, 200, UploadView.of(context, uploads.get_upload(context, upload, principal))
        )

    # It may take minutes, in which the owner's other requests need the concurrency slot.
    request.state.release_slot()
    async with completions.slot(principal.owner or EVERY_OWNER):
        return await to_thread.run_sync(respond_long, context, key, work)


@router.post("/{upload}/presign", response_model=UploadView)
def presign_upload(
    upload: UploadPath, principal: Writer, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Create a new link for a direct upload whose link has expired."""
    found = uploads.get_upload(context, upload, principal)
    if not found.row.direct or found.row.state != "open":
        kind = "direct" if found.row.direct else "sent in parts"
        raise Conflict(f"upload {upload} is {kind} and {found.row.state}: it has no link")

    def effect(_: Connection) -> ResponseRow:
        return response_row(key, 200, UploadView.of(context, found))

    return _with_link(context, run_once(context, key, effect)).response()


@router.delete("/{upload}", status_code=204)
def delete_upload(upload: UploadPath, principal: Writer, context: ContextDep) -> None:
    """Abort an upload. 409 while a dataset that names it is not learned."""
    uploads.abort(context, upload, principal)


def _received(body: Spooled, number: int, context: Context) -> ReceivedPart:
    """The part that was received. Raises Unprocessable if it is empty."""
    if body.bytes == 0:
        message = f"it has no bytes; permitted: 1 to {context.tuning.upload_part_bytes_max}"
        raise Unprocessable("the part is empty", FieldProblem("body", message))
    return ReceivedPart(body.path, PartRow(number, body.bytes, body.sha256))


def _with_link(context: Context, given: Outcome) -> Outcome:
    """Add a link. It permits as much as a key for a while, so it is created per response and never stored."""
    link = uploads.link(context, str(given.row.body["id"]))
    if link is None:
        return given
    view = PresignedView(
        method="PUT", url=link.url, headers=link.headers, expires_at=link.expires_at
    )
    return given.with_more(presigned=view.model_dump(mode="json"))
