"""The embeddings endpoint, asked on behalf of a session: browsers cannot ask it, because it permits no other origin.

Each request has a token that names the owner of the session, so that the endpoint itself decides what that owner may
see. Where the endpoint requires no keys it cannot decide, and the page shows models of the owner alone.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from cmcl.contract.api.access import Scope
from cmcl.contract.version import PARTS, EndpointParts
from cmcl.fairness import FairSemaphore
from service.auth.sessions import SessionTokens
from service.core.clock import Clock
from service.core.principal import EVERY_OWNER
from service.core.settings import Settings
from service.page.rendering import Visitor

logger = logging.getLogger(__name__)

View = TypeVar("View", bound=BaseModel)
# Several values are sent as several parameters of the name.
Parameter = str | int | Sequence[str]

SECONDS = 10.0
# Limit of a response; a page of items with payloads has less than a megabyte.
_MOST_BYTES = 4 << 20
_AT_ONCE, _AT_ONCE_OF_OWNER, _WAITING_OF_OWNER = 16, 4, 32
_CONNECT_SECONDS = 2.0
# The report on the endpoint's parts: how long it may take, how old it may be, and how long a page waits for it.
_CHECK_SECONDS, _CHECK_AGE_SECONDS, _GLANCE_SECONDS = 5.0, 5.0, 1.0
_STOPPING = {"STOPPING", "STOPPED"}
# What to do, by status of the endpoint.
_ADVICE = {
    401: "Give the control plane CMCL_SNAPSHOT_SIGNING_KEY and the endpoint the public key that belongs to it.",
    403: "Add the host of CMCL_EMBEDDINGS_URL to the endpoint's allowed_hosts.",
    429: "Try again in some seconds.",
    503: "Try again in some seconds.",
    504: "Try again in some seconds.",
}
_NOT_KNOWN = "Set CMCL_EMBEDDINGS_URL of the control plane. cmcl up and the chart do so."
_NOT_REACHED = "Start the endpoint, or correct CMCL_EMBEDDINGS_URL of the control plane. Datasets are still learned."


class EndpointProblem(Exception):
    """The endpoint did not return what was requested. `advice`: what to do; `status`: its own, or None."""

    def __init__(self, message: str, advice: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.advice = advice
        self.status = status


def release_slot(request: Request) -> None:
    """Release the slot of a request while it waits for the endpoint, so that other requests of its owner can use it."""
    release = getattr(request.state, "release_slot", None)
    # A body that is streamed has none.
    if release is not None:
        release()


class Endpoint:
    """Sends requests. For use on the event loop alone."""

    def __init__(
        self,
        url: str,
        tokens: "SessionTokens | None",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`tokens`: None where the endpoint requires no keys. `transport`: for tests."""
        self._url = url.rstrip("/")
        self._tokens = tokens
        self._transport = transport
        self._slots = FairSemaphore(_AT_ONCE, _AT_ONCE_OF_OWNER, _WAITING_OF_OWNER)
        self._checks: dict[str, str] = {}
        self._checked_at = -math.inf
        self._checking: asyncio.Task[None] | None = None

    def knows_owners(self, visitor: Visitor) -> bool:
        """Whether the endpoint itself refuses this visitor what belongs to others."""
        return self._tokens is not None or visitor.principal.owner is None

    async def ask(
        self,
        visitor: Visitor,
        view: type[View],
        path: str,
        body: object = None,
        *,
        parameters: Mapping[str, Parameter] = {},
        seconds: float = SECONDS,
    ) -> View:
        """GET, or POST with a body. Raises EndpointProblem, OverLimit."""
        if not self._url:
            raise EndpointProblem(
                "The control plane does not know the endpoint's address.", _NOT_KNOWN
            )
        if Scope.EMBED not in visitor.principal.scopes:
            raise EndpointProblem(
                "The key of this session does not have the scope embed.",
                "Sign in with a key that has it.",
            )
        async with self._slots.held(visitor.principal.owner or EVERY_OWNER):
            try:
                async with asyncio.timeout(seconds):
                    headers = self._headers(visitor, seconds)
                    status, content = await self._send(path, headers, seconds, body, parameters)
            except TimeoutError as error:
                raise EndpointProblem(
                    f"The endpoint did not answer within {seconds:g} seconds.", _NOT_REACHED
                ) from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                logger.warning("the endpoint at %s did not answer: %s", self._url, error)
                raise EndpointProblem("The endpoint does not answer.", _NOT_REACHED) from error
        return _parsed(view, status, content)

    async def checks(self) -> dict[str, str]:
        """Return the parts of the endpoint, each `ok` or its problem; empty without an address.

        The report is some seconds old. A page does not wait until a slow endpoint has answered: it shows the one before.
        """
        if not self._url:
            return {}
        is_due = time.monotonic() - self._checked_at > _CHECK_AGE_SECONDS
        if self._checking is None or (self._checking.done() and is_due):
            self._checking = asyncio.create_task(self._check())
        await asyncio.wait([self._checking], timeout=_GLANCE_SECONDS)
        return self._checks or {"endpoint": f"no answer within {_GLANCE_SECONDS:g} s"}

    async def _check(self) -> None:
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                status, content = await self._send(PARTS, {}, _CHECK_SECONDS)
            self._checks = {"endpoint": "ok", **_checks_of(_parsed(EndpointParts, status, content))}
        except TimeoutError:
            self._checks = {"endpoint": f"no answer within {_CHECK_SECONDS:g} s"}
        except (httpx.HTTPError, httpx.InvalidURL):
            self._checks = {"endpoint": "no answer"}
        except EndpointProblem as error:
            self._checks = {"endpoint": str(error)}
        self._checked_at = time.monotonic()

    def _headers(self, visitor: Visitor, seconds: float) -> dict[str, str]:
        # Less than the deadline here, so that the endpoint says which of its parts was slow.
        headers = {"x-request-timeout-ms": str(int(900 * seconds))}
        if self._tokens is not None:
            session = visitor.session.id if visitor.session else visitor.principal.name
            headers["authorization"] = self._tokens.authorization(visitor.principal, session)
        return headers

    async def _send(
        self,
        path: str,
        headers: Mapping[str, str],
        seconds: float,
        body: object = None,
        parameters: Mapping[str, Parameter] = {},
    ) -> tuple[int, bytes]:
        timeout = httpx.Timeout(seconds, connect=_CONNECT_SECONDS)
        # Proxies of the environment are for the internet, and this address is internal.
        client = httpx.AsyncClient(timeout=timeout, trust_env=False, transport=self._transport)
        method = "GET" if body is None else "POST"
        async with (
            client,
            client.stream(
                method, f"{self._url}{path}", params=parameters, json=body, headers=headers
            ) as response,
        ):
            content = b""
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > _MOST_BYTES:
                    raise EndpointProblem("The endpoint's answer is larger than a page can show.")
            return response.status_code, content


def open_endpoint(settings: Settings, clock: Clock) -> Endpoint:
    """The endpoint of the settings, with tokens where the control plane signs keys for it."""
    key = settings.signing_key()
    return Endpoint(settings.embeddings_url, None if key is None else SessionTokens(key, clock))


def _checks_of(parts: EndpointParts) -> dict[str, str]:
    """Each part with `ok` or its problem."""
    wanted = {state: count for state, count in parts.replicas.items() if state not in _STOPPING}
    running, total = wanted.get("RUNNING", 0), sum(wanted.values())
    if not total:
        replicas = "not known: Ray Serve's controller does not answer"
    else:
        replicas = "ok" if running == total else f"{running} of {total} running"
    encoders = {f"encoder {name}": result for name, result in parts.encoders.items()}
    return {"replicas": replicas, **encoders}


def _parsed(view: type[View], status: int, content: bytes) -> View:
    if status == 200:
        try:
            return view.model_validate_json(content)
        except ValidationError as error:
            logger.warning("the endpoint's answer is not understood: %s", error)
            raise EndpointProblem(
                "The endpoint's answer is not understood.",
                "Run the same release of the control plane and the endpoint.",
            ) from error
    raise EndpointProblem(_message(status, content), _ADVICE.get(status, ""), status)


def _message(status: int, content: bytes) -> str:
    try:
        message = json.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = None
    if isinstance(message, str) and message:
        return f"{message[:1].upper()}{message[1:]}."
    return f"The endpoint answered {status}."
