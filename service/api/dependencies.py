"""Dependencies of routes: the principal and its scopes, the context, path parameters, idempotency keys, ETags."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Body, Depends, Header, Path, Query, Request, Security
from fastapi.security import HTTPBearer, SecurityScopes
from pydantic import BeforeValidator, Field

from cmcl.contract.api.access import Scope
from cmcl.contract.encoder import WIDEST_FEATURE
from cmcl.contract.modality import MODALITY_PATTERN, NAME_PATTERN, Frozen
from service.api.pagination import LARGEST_NUMBER
from service.context import Context
from service.core.errors import FieldProblem, Forbidden, Unprocessable, UnsupportedMediaType
from service.core.loops import Loop
from service.core.principal import EVERY_OWNER, Principal
from service.datasets.intake import MOST_SHARDS

# Kubernetes calls these by the address of the pod.
PROBES = frozenset({"/healthz", "/readyz"})
# Has a key of its own: a scraper is not a user.
METRICS = "/metrics"
# All other paths need a key, also those that do not exist.
OPEN_PATHS = frozenset(
    {*PROBES, METRICS, *("/openapi.json", "/docs", "/docs/start", "/docs/script", "/docs/style")}
)

# For the API description alone: the middleware reads the header.
_DESCRIBED = HTTPBearer(
    scheme_name="bearer",
    auto_error=False,
    description="A key, `cmcl_...`, or a token of the configured issuer. Each operation names the "
    "scope that it needs.",
)


async def get_principal(
    request: Request, needed: SecurityScopes, _: Annotated[object, Security(_DESCRIBED)]
) -> Principal:
    """The principal of the request. Raises Forbidden without the scopes that the route requires."""
    principal: Principal = request.state.principal
    check_scopes(principal, needed.scopes)
    return principal


def check_scopes(principal: Principal, needed: Iterable[str]) -> None:
    """Raises Forbidden for the first scope that is missing."""
    for scope in needed:
        if scope not in principal.scopes:
            has = ", ".join(sorted(principal.scopes)) or "none"
            raise Forbidden(f"this needs the scope {str(scope)!r}; your key has: {has}")


AnyPrincipal = Annotated[Principal, Depends(get_principal)]
Reader = Annotated[Principal, Security(get_principal, scopes=[Scope.READ])]
Writer = Annotated[Principal, Security(get_principal, scopes=[Scope.WRITE])]
Trainer = Annotated[Principal, Security(get_principal, scopes=[Scope.TRAIN])]
Admin = Annotated[Principal, Security(get_principal, scopes=[Scope.ADMIN])]


# Limits of one list and of one object in a body.
_MOST_ITEMS = max(MOST_SHARDS, WIDEST_FEATURE)
_MOST_FIELDS = 100
# Checking for a union instead would take several times as long, for each item.
_CHECKED = (dict, list, str)

_JSON = "application/json"
# Media type that a route declares if it streams its body.
BYTES = "application/octet-stream"

ModelPath = Annotated[str, Path(alias="model", pattern=NAME_PATTERN)]
ModalityPath = Annotated[str, Path(alias="modality", pattern=MODALITY_PATTERN)]
DatasetPath = Annotated[str, Path(alias="dataset", pattern=r"^ds-[0-9a-f]{12}$")]
JobPath = Annotated[str, Path(alias="job", pattern=r"^job-[0-9a-f]{12}$")]
UploadPath = Annotated[str, Path(alias="upload", pattern=r"^up-[0-9a-f]{12}$")]
VersionPath = Annotated[int, Path(alias="version", ge=1, le=LARGEST_NUMBER)]
JobQuery = Annotated[str | None, Query(alias="job", pattern=r"^job-[0-9a-f]{12}$")]
ModelQuery = Annotated[str | None, Query(alias="model", pattern=NAME_PATTERN)]


def _as_flag(value: object) -> object:
    """`true` or `false`, as the description has it. Pydantic would accept `on`, `1`, `t` and others as well."""
    if not isinstance(value, str):
        return value
    if value not in ("true", "false"):
        raise ValueError("permitted: true, false")
    return value == "true"


# A query parameter.
Flag = Annotated[bool, BeforeValidator(_as_flag)]


_TAG = re.compile(r'^"(\d{1,9})"$')


@dataclass(frozen=True)
class IdempotencyKey:
    """An idempotency key with its owner, its route, and the digest of the body."""

    owner: str
    key: str
    route: str
    fingerprint: str


def get_context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


def get_loops(request: Request) -> list[Loop]:
    """The background loops of this process that run."""
    loops: list[Loop] = request.app.state.loops
    return loops


async def require_body_type(request: Request) -> None:
    """Refuse a body without the media type of the route, and JSON with too many items."""
    route = request.scope.get("route")
    permitted = permitted_type(route)
    if permitted == _JSON and not await request.body():
        return
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != permitted:
        message = f"the Content-Type is {declared or 'missing'}, permitted: {permitted}"
        raise UnsupportedMediaType(message)
    if getattr(route, "body_field", None) is not None:
        _check_size(await request.json())


async def get_request_key(
    request: Request,
    principal: AnyPrincipal,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            pattern=r"^[\x21-\x7e]{1,255}$",
            description="the same key with the same body runs once and returns the same response",
        ),
    ] = None,
) -> IdempotencyKey | None:
    if key is None:
        return None
    fingerprint = hashlib.sha256(await request.body()).hexdigest()
    # The response of a principal that sees all owners must not be replayed to one of them.
    return IdempotencyKey(
        principal.owner or EVERY_OWNER, key, f"{request.method} {request.url.path}", fingerprint
    )


def permitted_type(route: object) -> str:
    extra = getattr(route, "openapi_extra", None) or {}
    return BYTES if BYTES in extra.get("requestBody", {}).get("content", {}) else _JSON


def _check_size(document: object) -> None:
    """Raises Unprocessable for lists and objects beyond the limits, before their items are validated, and for texts
    that no answer, record or request could be encoded with.

    Each invalid item is an error of its own: 340,000 of them took 26 MB and seconds.
    """
    waiting = [document]
    while waiting:
        value = waiting.pop()
        inner: Iterable[object]
        if isinstance(value, str):
            _check_text(value)
            continue
        if isinstance(value, dict):
            inner, what, most = value.values(), "fields in one object", _MOST_FIELDS
        elif isinstance(value, list):
            inner, what, most = value, "items in one list", _MOST_ITEMS
        else:
            continue
        if len(value) > most:
            message = f"{len(value)} {what}, permitted are {most}"
            raise Unprocessable(f"the body has {message}", FieldProblem("body", message))
        waiting += [each for each in inner if isinstance(each, _CHECKED)]
        if isinstance(value, dict):
            waiting += value.keys()


def _check_text(text: str) -> None:
    """JSON may have half of a surrogate pair, which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"a text has half of a surrogate pair ({text[error.start]!r}), which UTF-8 cannot encode"
        raise Unprocessable(f"the body: {message}", FieldProblem("body", message)) from error


class Reason(Frozen):
    """A reason, for the history."""

    reason: str = Field(default="", max_length=500, pattern=r"^[^\x00]*$")


# A request without a body gives no reason.
ReasonBody = Annotated[Reason, Body(default_factory=Reason)]


ContextDep = Annotated[Context, Depends(get_context)]
LoopsDep = Annotated[list[Loop], Depends(get_loops)]
IdempotencyKeyDep = Annotated[IdempotencyKey | None, Depends(get_request_key)]


def etag(revision: int) -> dict[str, str]:
    return {"ETag": f'"{revision}"'}


def get_seen_revision(
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match",
            description="the ETag of an earlier response: 412 if the resource has changed since",
            examples=['"3"'],
        ),
    ] = None,
) -> int | None:
    """The revision of If-Match; None without a condition."""
    if if_match is None or if_match.strip() == "*":
        return None
    found = _TAG.match(if_match.strip())
    if found is None:
        message = 'give the ETag of an earlier response, with its quotes, for example "3"'
        raise Unprocessable(message, FieldProblem("If-Match", message, if_match))
    return int(found.group(1))


SeenRevision = Annotated[int | None, Depends(get_seen_revision)]
