"""Routes that no user calls: probes, and announcements of the control plane."""

import asyncio

import numpy as np
from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmcl.contract.version import ANNOUNCEMENTS, Announcement
from workers.serve.announcements import Announcer
from workers.serve.api.context import Replica
from workers.serve.api.openapi import operation
from workers.serve.api.wire.responses import Health
from workers.serve.compute import stuck
from workers.serve.errors import BodyTimeout, BodyTooLarge, InvalidRequest, NotReady
from workers.serve.versions.loading import ServedVersion

# Longer than any product takes: a thread that does not respond in this time is stuck.
_MOVES_SECONDS = 5.0

_MOST_BYTES = 4096
_BODY_SECONDS = 5.0


def probes_router(replica: Replica) -> APIRouter:
    """The routes `/healthz` and `/readyz`."""
    made = APIRouter(tags=["health"])
    tried = _Tried(replica)

    @made.get("/healthz", **operation("check_liveness", Health, {500, 503}))
    async def healthz() -> Response:
        """Check that both compute threads respond; also says which application it is, for a restarted driver."""
        if problem := await stuck(replica.compute, _MOVES_SECONDS):
            raise NotReady(problem)
        return JSONResponse({"status": "ok", "application": replica.args.identity})

    @made.get("/readyz", **operation("check_readiness", Health, {500, 503}))
    async def readyz() -> Response:
        """Check that the store and the keys were read, and that every live head in memory gives a vector."""
        if not replica.live.readiness.ready:
            raise NotReady(replica.live.readiness.reason)
        if not replica.access.ready:
            raise NotReady("this replica has not seen the list of keys yet")
        await tried.every_head()
        return JSONResponse({"status": "ready"})

    return made


class _Tried:
    """Embeds one vector of each modality by each live version, once: a probe comes every second."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._worked: dict[str, ServedVersion] = {}

    async def every_head(self) -> None:
        """Raises NotReady."""
        live = {name: each.version for name, each in self._replica.live.all().items()}
        self._worked = {name: each for name, each in self._worked.items() if name in live}
        for name, version in live.items():
            # Versions on demand are tested when they are loaded: a probe must not evict what is in use.
            if self._worked.get(name) != version and (pinned := version.pinned()) is not None:
                await self._try(pinned)
                self._worked[name] = version

    async def _try(self, version: ServedVersion) -> None:
        for modality, width in version.spec.widths.items():
            row_BF = np.full((1, width), width**-0.5, np.float32)
            vector_BE = await self._replica.compute.embed(version, modality, row_BF)
            if not np.isfinite(vector_BE).all():
                raise NotReady(f"{version.label} gives no vector for modality {modality!r}")


def announcements_router(announcer: Announcer) -> APIRouter:
    """Return the route `POST /internal/announcements`.

    It needs no key: it causes a poll of the store, some times a second at most.
    """
    made = APIRouter(include_in_schema=False)

    @made.post(ANNOUNCEMENTS)
    async def post_announcement(request: Request) -> Response:
        """Announce a change to all replicas, without waiting until they have polled."""
        news = _parsed(await _body(request))
        announcer.announce(news.model)
        return JSONResponse({"status": "announced"}, 202)

    return made


async def _body(request: Request) -> bytes:
    """Read the body. Raises BodyTooLarge and BodyTimeout, as any client that reaches the port can send here."""
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
