"""Building of requests and parsing of responses, without I/O."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from cmcl.client.errors import (
    CmclError,
    InvalidArgument,
    Json,
    Unreachable,
    WrongServer,
    error_code,
    json_object,
    one_line,
    refusal,
)

T = TypeVar("T", bound=BaseModel)
Params = Mapping[str, str | list[str]]
# Order of a list: the oldest item or smallest name first, or the other way round.
Order = Literal["asc", "desc"]


class Side(StrEnum):
    """Target of a request."""

    SERVICE = "service"
    EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class Request:
    """An HTTP request.

    `not_repeated`: codes of errors after which the caller sends another request, and not the same one. `file`: the
    body, in place of `content`; `on_sent` gets the bytes of it that were sent.
    """

    method: str
    path: str
    side: Side = Side.SERVICE
    params: Params = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = field(default=None, repr=False)
    not_repeated: frozenset[str] = frozenset()
    file: Path | None = None
    on_sent: Callable[[int], None] | None = None

    def options(self) -> dict[str, object]:
        """Return the arguments of httpx's `request` and `stream`."""
        return {
            "method": self.method,
            "url": self.path,
            "params": dict(self.params) or None,
            "headers": dict(self.headers),
            "content": self.content,
        }


# cmcl's servers name themselves in this header of every response.
_SERVER_HEADER = "x-cmcl-server"
_SERVERS = {"control-plane": Side.SERVICE, "embeddings": Side.EMBEDDINGS}
_NAMES = {Side.SERVICE: "the control plane", Side.EMBEDDINGS: "the embeddings endpoint"}
_SET_BY = {
    Side.SERVICE: "CMCL_URL, --url or service_url",
    Side.EMBEDDINGS: "CMCL_EMBEDDINGS_URL, --embeddings-url or embeddings_url",
}


# Statuses for an unknown path or method.
_UNKNOWN_PATH = frozenset({404, 405})


def is_stream(response: httpx.Response) -> bool:
    """Whether the response is a stream of events."""
    declared = str(response.headers.get("content-type", ""))
    return response.status_code == httpx.codes.OK and declared.startswith("text/event-stream")


def given(**values: str | list[str] | None) -> Params:
    """Return query parameters without empty values."""
    return {name: value for name, value in values.items() if value}


def without_none(**values: Any) -> dict[str, Any]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def segment(name: str) -> str:
    """Quote a name as one segment of a path. The server validates it."""
    if not name:
        raise InvalidArgument("a name is empty; it must have at least one character")
    # A segment of dots would be resolved as a relative path.
    return name.replace(".", "%2E") if set(name) == {"."} else quote(name, safe="")


def posted_reason(reason: str) -> dict[str, str]:
    """Return the reason as part of a body, if there is one."""
    return {"reason": reason} if reason else {}


def revision_of(response: httpx.Response) -> int | None:
    """Return the number in the ETag."""
    text = str(response.headers.get("etag", "")).strip('W/"')
    return int(text) if text.isdecimal() else None


def json_bytes(body: object) -> bytes | None:
    """Encode the body of a request. Raises InvalidArgument for NaN and infinity."""
    if body is None:
        return None
    try:
        return json.dumps(body, allow_nan=False).encode()
    except ValueError as error:
        raise InvalidArgument(f"the request cannot be encoded as JSON: {error}") from error


def read(kind: type[T], response: httpx.Response, side: Side = Side.SERVICE) -> T:
    """Parse a successful response. Raises CmclError for an unexpected form."""
    return validated(kind, _object(response, side), response)


def validated(kind: type[T], value: object, response: httpx.Response) -> T:
    """Validate an object of a response. Unknown fields are kept."""
    try:
        return kind.model_validate(value, extra="allow")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CmclError(
            f"the response has an unexpected form: {kind.__name__}.{where}: {first['msg']}; check that "
            "client and server have the same version",
            response.status_code,
            request_id=response.headers.get("x-request-id"),
        ) from error


def listed(response: httpx.Response, field: str, side: Side) -> Json:
    """Parse a successful response with a list in `field`. Raises CmclError for an unexpected form."""
    body = _object(response, side)
    if isinstance(body.get(field), list):
        return body
    _raise_if_foreign(side, _side_of_body(body), response)
    raise CmclError(
        f"the response of {_address(response) or side} has no list {field!r}; check that it is a "
        f"server of cmcl of the same version; its address is set by {_SET_BY[side]}",
        response.status_code,
        request_id=response.headers.get("x-request-id"),
    )


def refused(side: Side, response: httpx.Response) -> CmclError:
    """Create the error of a response; WrongServer if it is not from a cmcl server."""
    return _foreign(side, response) or refusal(response)


def check_server(side: Side, response: httpx.Response) -> None:
    """Raise WrongServer if the other cmcl server has responded."""
    named = _SERVERS.get(response.headers.get(_SERVER_HEADER, ""))
    if named is None and response.is_error:
        # A proxy may have removed the header; the two servers have different error formats.
        named = _side_of_body(json_object(response) or {})
    _raise_if_foreign(side, named, response)


def unreachable(side: Side, error: httpx.TransportError) -> Unreachable:
    """Create the error of a failed connection, without secrets of the URL."""
    where = _address(error) or f"the {side}"
    if "WRONG_VERSION_NUMBER" in str(error):
        plain = where.replace("https://", "http://", 1)
        return Unreachable(f"{where} does not use TLS; try {plain}")
    if isinstance(error, httpx.ConnectError):
        return Unreachable(
            f"cannot connect to {where} ({error}); is `cmcl up` running? For another address of "
            f"{_NAMES[side]}, set {_SET_BY[side]}"
        )
    return Unreachable(f"{where} does not respond: {error or type(error).__name__}")


def _raise_if_foreign(side: Side, found: Side | None, response: httpx.Response) -> None:
    if found in (None, side):
        return
    raise WrongServer(
        f"{_address(response) or 'this address'} is {_NAMES[found]}, but the call needs "
        f"{_NAMES[side]}: set {_SET_BY[side]} to its address",
        response.status_code,
        request_id=response.headers.get("x-request-id"),
    )


def _foreign(side: Side, response: httpx.Response) -> WrongServer | None:
    """Return WrongServer if the response is not from a cmcl server, else None."""
    is_ours = response.headers.get(_SERVER_HEADER) in _SERVERS
    body = json_object(response)
    if is_ours or (body is not None and _side_of_body(body) is not None):
        return None
    is_page = body is None and response.status_code < httpx.codes.INTERNAL_SERVER_ERROR
    if not is_page and response.status_code not in _UNKNOWN_PATH:
        return None
    return unexpected_response(side, response)


def unexpected_response(side: Side, response: httpx.Response) -> WrongServer:
    """Create the error of a response that is not from a cmcl server."""
    body = json_object(response) or {}
    words = one_line(str(body.get("detail") or body.get("title") or response.text))
    return WrongServer(
        f"{_address(response) or 'the server'} answered HTTP {response.status_code} "
        f"({words or 'no text'}), which is not a response of {_NAMES[side]}: set {_SET_BY[side]} to "
        "its address",
        response.status_code,
        request_id=response.headers.get("x-request-id"),
    )


def _side_of_body(body: Json) -> Side | None:
    """Detect the server by the form of a response: RFC 9457 and pages, or OpenAI's errors and lists."""
    if str(body.get("type", "")).startswith("urn:cmcl:problem:") or "next_cursor" in body:
        return Side.SERVICE
    if isinstance(body.get("error"), dict) or body.get("object") == "list":
        return Side.EMBEDDINGS
    return None


def _address(source: httpx.TransportError | httpx.Response) -> str | None:
    """Return scheme and host of the request, or None without a request."""
    try:
        url = source.request.url
    except RuntimeError:
        return None
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _object(response: httpx.Response, side: Side) -> Json:
    body = json_object(response)
    if body is None:
        raise unexpected_response(side, response)
    return body


def condition(revision: int | None) -> dict[str, str]:
    """Return the If-Match header for a revision."""
    return {} if revision is None else {"if-match": f'"{revision}"'}


def content_type(body: object) -> dict[str, str]:
    return {} if body is None else {"content-type": "application/json"}


def is_repeatable(request: Request, outcome: httpx.TransportError | httpx.Response) -> bool:
    """Whether to retry. A request with If-Match is not retried if the first one may have succeeded."""
    if isinstance(outcome, httpx.Response) and error_code(outcome) in request.not_repeated:
        return False
    return "if-match" not in request.headers or not may_be_done(outcome)


def may_be_done(outcome: httpx.TransportError | httpx.Response) -> bool:
    """Whether the server may have carried out a request that ended so, without success."""
    if isinstance(outcome, httpx.Response):
        # Rejected by the limits of either server, or by a proxy without a server behind it.
        return outcome.status_code not in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.NOT_FOUND)
    return not isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout)
