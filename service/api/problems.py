"""Errors as problem+json (RFC 9457), from one table."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from cmcl.contract.errors import StorageUnavailable, shortened
from cmcl.contract.modality import MODALITY_PATTERN, NAME_PATTERN
from cmcl.fairness import OverLimit
from service.core.errors import (
    BodyTooLarge,
    Conflict,
    DatabaseUnavailable,
    FieldProblem,
    Forbidden,
    IncompleteBody,
    IssuerUnavailable,
    NotFound,
    PreconditionFailed,
    Rejected,
    ServiceError,
    TooManyRequests,
    Unauthorized,
    Unprocessable,
    UnsupportedMediaType,
    WriteConflict,
)
from service.launchers.port import LauncherUnavailable


@dataclass(frozen=True)
class Kind:
    """A kind of problem: status, end of the type URN, title."""

    status: int
    slug: str
    title: str


INVALID = Kind(422, "invalid-request", "Invalid request")
MALFORMED = Kind(400, "malformed-body", "The request body is not valid JSON")
INTERNAL = Kind(500, "internal-error", "Internal server error")
NOT_FOUND = Kind(404, "not-found", "Not found")
CONFLICT = Kind(409, "conflict", "The request conflicts with the current state of the resource")

KINDS: dict[type[Exception], Kind] = {
    NotFound: NOT_FOUND,
    Conflict: CONFLICT,
    WriteConflict: CONFLICT,
    Unprocessable: INVALID,
    UnsupportedMediaType: Kind(415, "unsupported-media-type", "Unsupported media type"),
    IncompleteBody: Kind(400, "incomplete-body", "Incomplete request body"),
    BodyTooLarge: Kind(413, "body-too-large", "Request body too large"),
    PreconditionFailed: Kind(412, "precondition-failed", "Precondition failed"),
    Unauthorized: Kind(401, "unauthorized", "Unauthorized"),
    Forbidden: Kind(403, "forbidden", "Forbidden"),
    TooManyRequests: Kind(429, "too-many-requests", "Too many requests"),
    OverLimit: Kind(429, "too-many-requests", "Too many requests"),
    IssuerUnavailable: Kind(503, "issuer-unavailable", "Token issuer unavailable"),
    DatabaseUnavailable: Kind(503, "database-unavailable", "Database unavailable"),
    LauncherUnavailable: Kind(503, "cluster-unavailable", "Cluster unavailable"),
    StorageUnavailable: Kind(503, "storage-unavailable", "Object storage unavailable"),
}

# Raised by the framework.
FRAMEWORK: dict[int, Kind] = {
    400: MALFORMED,
    404: NOT_FOUND,
    405: Kind(405, "method-not-allowed", "Method not allowed"),
}

_PATTERNS = {
    NAME_PATTERN: "lower-case letters, digits and inner hyphens, 1 to 48 characters",
    MODALITY_PATTERN: "a lower-case letter, then lower-case letters, digits and underscores, "
    "32 characters at most",
    r"^[0-9a-f]{64}$": "64 lower-case hexadecimal digits",
    **{
        rf"^{prefix}-[0-9a-f]{{12}}$": f"the id of {thing}, {prefix}- and 12 hexadecimal digits"
        + (f"; GET /v1/{listed} has them" if listed else ", from the response that created it")
        for prefix, thing, listed in (
            ("job", "a job", "jobs"),
            ("ds", "a dataset", "datasets"),
            ("key", "a key", "keys"),
            ("wh", "a webhook", "webhooks"),
            ("up", "an upload", None),
        )
    },
}
# Detail for an unknown path, which is most often one of the other server.
_ELSEWHERE = (
    "this is the control plane; embeddings, migration and collections are at the embeddings "
    "endpoint (CMCL_EMBEDDINGS_URL of the client, by default port 8001)"
)
_LONGEST_VALUE = 200
_LONGEST_MESSAGE = 1000
_LONGEST_DETAIL = 4000
# Limits of one response. Omitted errors are counted.
_MOST_ERRORS = 50
_MOST_IN_DETAIL = 3
_MOST_BYTES = 64 << 10
_UNAVAILABLE = 503
_BARE = re.compile(r"^[A-Za-z_][A-Za-z0-9_-]*$")


class ProblemField(BaseModel):
    """An error of one field."""

    field: str = Field(examples=["shards[0].uri"])
    message: str
    value: str | int | float | bool | None = None


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:cmcl:problem:not-found"])
    title: str
    status: int
    detail: str
    instance: str = Field(description="path of the request")
    errors: list[ProblemField] = []
    more_errors: int = Field(
        default=0, description="number of errors that are omitted from `errors`"
    )


class ProblemResponse(JSONResponse):
    """Problem response in ASCII: a request may contain half a surrogate pair, which UTF-8 cannot encode."""

    media_type = "application/problem+json"

    def render(self, content: object) -> bytes:
        return json.dumps(content, allow_nan=False).encode("ascii")


def problem(
    kind: Kind,
    detail: str,
    path: str,
    fields: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> ProblemResponse:
    """Create the response for a problem, with at most 50 fields and 64 KiB."""
    quoted = [_quoted(field) for field in fields[:_MOST_ERRORS]]
    while True:
        body = Problem(
            type=f"urn:cmcl:problem:{kind.slug}",
            title=kind.title,
            status=kind.status,
            detail=shortened(detail, _LONGEST_DETAIL),
            instance=shortened(path, _LONGEST_MESSAGE),
            errors=quoted,
            more_errors=len(fields) - len(quoted),
        )
        response = ProblemResponse(body.model_dump(), kind.status, headers=headers)
        if len(response.body) <= _MOST_BYTES:
            return response
        # A character beyond ASCII takes six bytes. Without fields it always fits.
        quoted = quoted[: len(quoted) // 2]


def add_problem_handlers(app: FastAPI) -> None:
    """Register handlers that turn every error into a problem."""
    for error in KINDS:
        app.add_exception_handler(error, _service_error)
    app.add_exception_handler(ServiceError, _service_error)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_framework)


async def _service_error(request: Request, error: Exception) -> ProblemResponse:
    return error_response(error, request.url.path)


def error_response(error: Exception, path: str) -> ProblemResponse:
    """The response for an error of KINDS."""
    kind = next((KINDS[cls] for cls in type(error).__mro__ if cls in KINDS), INTERNAL)
    fields = error.fields if isinstance(error, Rejected) else ()
    return problem(kind, str(error), path, fields, _headers(kind, error))


def _headers(kind: Kind, error: Exception) -> dict[str, str] | None:
    if isinstance(error, TooManyRequests):
        return {"Retry-After": str(error.retry_after)}
    if isinstance(error, OverLimit):
        return {"Retry-After": "2"}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": 'Bearer realm="cmcl"'}
    return {"Retry-After": "1"} if kind.status == _UNAVAILABLE else None


def rejected_body(error: HTTPException, path: str) -> ProblemResponse | None:
    """The response where the body was refused while it was read (service/api/limits.py), which FastAPI catches."""
    cause = error.__cause__
    if isinstance(cause, Exception) and isinstance(cause, tuple(KINDS)):
        return error_response(cause, path)
    return None


async def _framework(request: Request, error: HTTPException) -> ProblemResponse:
    if refused := rejected_body(error, request.url.path):
        return refused
    kind = FRAMEWORK.get(error.status_code)
    if kind is None:
        kind = Kind(error.status_code, "http-error", "Request failed")
    path, detail = request.url.path, str(error.detail)
    if error.status_code == 404:
        detail = f"there is no {path[:_LONGEST_VALUE]} here: {_ELSEWHERE}"
    return problem(kind, detail, path, headers=error.headers)


async def _invalid(request: Request, error: RequestValidationError) -> ProblemResponse:
    found = error.errors()
    if found and found[0]["type"] == "json_invalid":
        reason = found[0].get("ctx", {}).get("error", "")
        return problem(MALFORMED, f"the body is not JSON: {reason}", request.url.path)
    fields = field_problems(error)
    detail = "; ".join(f"{field.field}: {field.message}" for field in fields[:_MOST_IN_DETAIL])
    if len(fields) > _MOST_IN_DETAIL:
        detail = f"{shortened(detail, _LONGEST_MESSAGE)}; and {len(fields) - _MOST_IN_DETAIL} more"
    return problem(INVALID, detail, request.url.path, fields)


def field_problems(error: RequestValidationError | Rejected) -> Sequence[FieldProblem]:
    """The fields that an error names."""
    if isinstance(error, Rejected):
        return error.fields
    return [_field_problem(item) for item in error.errors()]


def _field_problem(error: Mapping[str, Any]) -> FieldProblem:
    """Convert one of pydantic's errors, which are untyped dictionaries."""
    location = tuple(error["loc"])
    value = None if error["type"] == "missing" else error.get("input")
    return FieldProblem(_path(location[1:]) or str(location[0]), _message(error), value)


def _message(error: Mapping[str, object]) -> str:
    """The validator's message, or a description in place of a regular expression."""
    context = error.get("ctx")
    if error["type"] == "string_pattern_mismatch" and isinstance(context, dict):
        permitted = _PATTERNS.get(str(context.get("pattern")))
        if permitted:
            return f"permitted: {permitted}"
    if error["type"] == "extra_forbidden":
        return "there is no such field"
    return str(error["msg"]).removeprefix("Value error, ")


def _path(location: tuple[object, ...]) -> str:
    """("shards", 0, "uri") becomes shards[0].uri."""
    path = ""
    for part in location:
        if isinstance(part, str) and _BARE.match(part):
            path += f".{part}" if path else part
        else:
            path += f"[{part!r}]"
    return path


def _quoted(field: FieldProblem) -> ProblemField:
    return ProblemField(
        field=shortened(field.field, _LONGEST_VALUE),
        message=shortened(field.message, _LONGEST_MESSAGE),
        value=_quotable(field.value),
    )


def _quotable(value: object) -> str | int | float | bool | None:
    """A value that JSON has, shortened."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    text = value if isinstance(value, str) else repr(value)
    return shortened(text, _LONGEST_VALUE)
