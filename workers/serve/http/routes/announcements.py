"""`POST /internal/announcements`: something changed in the store, look now.

It needs no key: all that it brings about is a look at the store, some times a second at most. What
a replica believes it reads there.
"""

import asyncio

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmcl.contract.version import ANNOUNCEMENTS, Announcement
from workers.serve.errors import BodyTimeout, BodyTooLarge, InvalidRequest
from workers.serve.push.port import Announcer

_MOST_BYTES = 4096
_BODY_SECONDS = 5.0


def router(announcer: Announcer) -> APIRouter:
    """The route that tells this announcer."""
    made = APIRouter(include_in_schema=False)

    @made.post(ANNOUNCEMENTS)
    async def post_announcement(request: Request) -> Response:
        """All replicas are told; whether they have looked is not waited for."""
        news = _parsed(await _body(request))
        announcer.announce(news.model)
        return JSONResponse({"status": "announced"}, 202)

    return made


async def _body(request: Request) -> bytes:
    """Raises BodyTooLarge and BodyTimeout: whoever reaches the port can send here."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MOST_BYTES:
                    raise BodyTooLarge(f"an announcement has {_MOST_BYTES} bytes at most")
    except TimeoutError as error:
        raise BodyTimeout(f"the body did not arrive in {_BODY_SECONDS:g} s") from error
    return bytes(body)


def _parsed(body: bytes) -> Announcement:
    try:
        return Announcement.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "body"
        value = repr(first["input"])[:60]
        raise InvalidRequest(f"{field} is {value}: {first['msg']}", param=field) from error
