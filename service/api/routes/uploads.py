"""Uploads: files on their way into object storage, whole or in parts, through us or by a link."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from service.api.access import Reader, Writer
from service.api.answers import Answered, answer_long, answered, record
from service.api.dependencies import BYTES, ContextDep, RequestKeyDep, UploadPath
from service.api.places import Places
from service.api.shares import FairSemaphore
from service.api.spool import Spooled, spooled
from service.control.context import Context
from service.control.data import assemble, uploads
from service.control.data.intake import random_id
from service.control.data.upload_uris import uri_of
from service.control.data.uploads import ReceivedPart, Upload, UploadRequest
from service.database.rows import AnswerRecord, PartRecord
from service.errors import Conflict, FieldProblem, Unprocessable
from service.principal import EVERY_OWNER
from workers.storage.s3 import MOST_PARTS, SMALLEST_PART

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

# Completing reads whole files, so it has places of its own; owners get them in turns.
COMPLETED_AT_ONCE = 4
COMPLETIONS_WAITING_OF_OWNER = 256


def get_completions(request: Request) -> FairSemaphore:
    """Return this app's places for completions; a request that waits for one takes no thread."""
    places: FairSemaphore = request.app.state.completions
    return places


def get_places(request: Request) -> Places:
    """For the bodies of parts; those of this app."""
    places: Places = request.app.state.part_places
    return places


PlacesDep = Annotated[Places, Depends(get_places)]
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
    """A request that stores the file; send it with exactly these headers before it expires."""

    method: Literal["PUT"]
    url: str
    headers: Mapping[str, str]
    expires_at: datetime


class UploadView(BaseModel):
    """An upload: what was announced, and what arrived."""

    id: str
    filename: str
    bytes: int = Field(description="size of the whole file")
    sha256: str | None = Field(description="as announced; of a complete file, as measured")
    direct: bool
    state: Literal["open", "completing", "complete"]
    uri: str | None = Field(description="what a dataset's shard names; none before it is complete")
    parts: list[PartView] = Field(description="the parts that arrived: send what is missing")
    part_bytes_min: int = Field(description="every part but the last has at least so many")
    part_bytes_max: int
    presigned: PresignedView | None = Field(
        default=None, description="of a direct upload, once: in the answer that makes the link"
    )
    created_at: datetime
    completed_at: datetime | None
    expires_at: datetime = Field(
        description="until then it has to be completed; and once it is, named in a dataset"
    )

    @classmethod
    def of(cls, context: Context, upload: Upload) -> "UploadView":
        """The view of a record and its parts."""
        found, settings = upload.record, context.settings
        more = {
            "uri": uri_of(found),
            "parts": [vars(part) for part in upload.parts],
            "part_bytes_min": SMALLEST_PART,
            "part_bytes_max": settings.upload_part_bytes_max,
            "expires_at": uploads.expires_at(settings, found),
        }
        return cls.model_validate(vars(found) | more)


@router.post("", status_code=201, response_model=UploadView)
def post_upload(
    body: UploadRequest, principal: Writer, context: ContextDep, key: RequestKeyDep
) -> JSONResponse:
    """Announce a file. Then send its parts; or, if it is direct, send it to the signed link."""

    def effect(connection: Connection) -> AnswerRecord:
        name = f"up-{random_id()}"
        begun = uploads.begin(connection, name, body, context, principal.owns_as)
        view = UploadView.of(context, Upload(begun, []))
        return record(key, 201, view, f"/v1/uploads/{begun.id}")

    return _with_link(context, answered(context, key, effect)).response()


@router.get("/{upload}")
def read_upload(upload: UploadPath, principal: Reader, context: ContextDep) -> UploadView:
    """An upload, with the parts that arrived: whoever was interrupted goes on from here."""
    return UploadView.of(context, uploads.look(context, upload, principal))


@router.put("/{upload}/parts/{number}", openapi_extra=_RAW_BODY)
async def put_part(
    upload: UploadPath,
    number: PartPath,
    principal: Writer,
    context: ContextDep,
    request: Request,
    places: PlacesDep,
) -> PartView:
    """Send one part: the body is its bytes. It counts once this answers; sending it again is safe.

    Parts are numbered 1, 2, 3 in the order of the file, and can come in any order, also at the same
    time. A `Content-Digest: sha-256=:...:` is checked. All parts but the last have 5 MiB or more.
    429 where too many are being taken at this moment; `Retry-After` says when to send it again.
    """
    await run_in_threadpool(uploads.check_takes_parts, context, upload, principal)
    with places.one(principal.owns_as) as place:
        async with spooled(place.watch(request)) as body:
            received = _received(body, number, context)
            kept = await run_in_threadpool(uploads.keep_part, context, upload, received, principal)
    return PartView(**vars(kept))


@router.post("/{upload}/complete", response_model=UploadView)
async def complete_upload(
    request: Request,
    upload: UploadPath,
    principal: Writer,
    context: ContextDep,
    key: RequestKeyDep,
    completions: CompletionsDep,
) -> JSONResponse:
    """Make the file of its parts, and check all of it. Takes as long as reading the file.

    Completing again answers the same. 409 while another request is at it, and where parts are
    missing or other ones than were announced: send those, and complete again.
    """

    def work() -> AnswerRecord:
        assemble.complete(context, upload, principal)
        return record(key, 200, UploadView.of(context, uploads.look(context, upload, principal)))

    # It may take minutes, in which the owner's other requests need the place among those at work.
    request.state.release_place()
    async with completions.slot(principal.owner or EVERY_OWNER):
        return await to_thread.run_sync(answer_long, context, key, work)


@router.post("/{upload}/presign", response_model=UploadView)
def presign_upload(
    upload: UploadPath, principal: Writer, context: ContextDep, key: RequestKeyDep
) -> JSONResponse:
    """A new link for a direct upload whose link has expired."""
    found = uploads.look(context, upload, principal)
    if not found.record.direct or found.record.state != "open":
        kind = "direct" if found.record.direct else "sent in parts"
        raise Conflict(f"upload {upload} is {kind} and {found.record.state}: it has no link")

    def effect(_: Connection) -> AnswerRecord:
        return record(key, 200, UploadView.of(context, found))

    return _with_link(context, answered(context, key, effect)).response()


@router.delete("/{upload}", status_code=204)
def delete_upload(upload: UploadPath, principal: Writer, context: ContextDep) -> None:
    """Give an upload up. 409 while a dataset that names it was not learned yet."""
    uploads.abort(context, upload, principal)


def _received(body: Spooled, number: int, context: Context) -> ReceivedPart:
    """Raises Unprocessable for an empty one."""
    if body.bytes == 0:
        message = f"it has no bytes; permitted: 1 to {context.settings.upload_part_bytes_max}"
        raise Unprocessable("the part is empty", FieldProblem("body", message))
    return ReceivedPart(body.path, PartRecord(number, body.bytes, body.sha256))


def _with_link(context: Context, given: Answered) -> Answered:
    """A link is as good as a key for a while: it is made for each answer anew, and never kept."""
    link = uploads.link(context, str(given.record.body["id"]))
    if link is None:
        return given
    view = PresignedView(
        method="PUT", url=link.url, headers=link.headers, expires_at=link.expires_at
    )
    return given.with_more(presigned=view.model_dump(mode="json"))
