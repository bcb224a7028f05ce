"""Requests as they are sent and responses as they are read, without any connection."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from cmcl.client.errors import (
    CmclError,
    InvalidArgument,
    Json,
    Unreachable,
    WrongServer,
    json_object,
    one_line,
    refusal,
)

Answer = TypeVar("Answer", bound=BaseModel)
Params = Mapping[str, str | list[str]]


class Side(StrEnum):
    """Who is asked. The key goes to our two servers, never elsewhere."""

    SERVICE = "service"
    EMBEDDINGS = "embeddings"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Request:
    """One HTTP request; `path` is a whole address for Side.ELSEWHERE."""

    method: str
    path: str
    side: Side = Side.SERVICE
    params: Params = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = field(default=None, repr=False)

    def options(self) -> dict[str, object]:
        """The arguments of httpx's `request` and `stream`."""
        return {
            "method": self.method,
            "url": self.path,
            "params": dict(self.params) or None,
            "headers": dict(self.headers),
            "content": self.content,
        }


# Every answer of our servers says which of the two it comes from.
_SERVER_HEADER = "x-cmcl-server"
_SERVERS = {"control-plane": Side.SERVICE, "embeddings": Side.EMBEDDINGS}
_NAMES = {Side.SERVICE: "the control plane", Side.EMBEDDINGS: "the embeddings endpoint"}
_SET_BY = {
    Side.SERVICE: "CMCL_URL, --url or service_url",
    Side.EMBEDDINGS: "CMCL_EMBEDDINGS_URL, --embeddings-url or embeddings_url",
}


# What a server answers to a path, or a method of it, that it does not have.
_UNKNOWN_PATH = frozenset({404, 405})


def is_stream(response: httpx.Response) -> bool:
    """Whether events come over it."""
    declared = str(response.headers.get("content-type", ""))
    return response.status_code == httpx.codes.OK and declared.startswith("text/event-stream")


def given(**values: str | list[str] | None) -> Params:
    """Parameters of a query; those that nobody gave are left out."""
    return {name: value for name, value in values.items() if value}


def segment(name: str) -> str:
    """A name as one part of a path: what is odd about it is for the server to say."""
    if not name:
        raise InvalidArgument("a name is empty; write at least one character")
    # Dots alone would be taken for steps in a path, and never arrive.
    return name.replace(".", "%2E") if set(name) == {"."} else quote(name, safe="")


def posted_reason(reason: str) -> dict[str, str]:
    """Why, for the history, where there is a reason."""
    return {"reason": reason} if reason else {}


def revision_of(response: httpx.Response) -> int | None:
    """The number in the ETag."""
    text = str(response.headers.get("etag", "")).strip('W/"')
    return int(text) if text.isdecimal() else None


def json_bytes(body: object) -> bytes | None:
    """The body of a request; raises InvalidArgument for what JSON does not have: NaN and infinity."""
    if body is None:
        return None
    try:
        return json.dumps(body, allow_nan=False).encode()
    except ValueError as error:
        raise InvalidArgument(f"the request cannot be written as JSON: {error}") from error


def read(kind: type[Answer], response: httpx.Response, side: Side = Side.SERVICE) -> Answer:
    """The answer of a success; raises CmclError for one of another form."""
    return validated(kind, _object(response, side), response)


def validated(kind: type[Answer], value: object, response: httpx.Response) -> Answer:
    """An object of the answer. Fields that this client does not know are kept."""
    try:
        return kind.model_validate(value, extra="allow")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CmclError(
            f"the answer of the service is not of the form that this client knows: "
            f"{kind.__name__}.{where}: {first['msg']}; are both of the same version?",
            response.status_code,
            request_id=response.headers.get("x-request-id"),
        ) from error


def listed(response: httpx.Response, field: str, side: Side) -> Json:
    """The answer of a success, with a list in `field`. Raises CmclError for one of another form."""
    body = _object(response, side)
    if isinstance(body.get(field), list):
        return body
    _raise_if_foreign(side, _side_of_body(body), response)
    raise CmclError(
        f"the answer of {_address(response) or side} has no list {field!r}; is it a server of cmcl, "
        f"and of the same version? Its address is {_SET_BY[side]}",
        response.status_code,
        request_id=response.headers.get("x-request-id"),
    )


def refused(side: Side, response: httpx.Response) -> CmclError:
    """The error of a response, or WrongServer where no server of cmcl can have sent it."""
    return _foreign(side, response) or refusal(response)


def check_server(side: Side, response: httpx.Response) -> None:
    """Raises WrongServer if the other one of our two servers has answered."""
    if side == Side.ELSEWHERE:
        return
    named = _SERVERS.get(response.headers.get(_SERVER_HEADER, ""))
    if named is None and response.is_error:
        # A proxy may have dropped the header; each server words its errors in a form of its own.
        named = _side_of_body(json_object(response) or {})
    _raise_if_foreign(side, named, response)


def unreachable(side: Side, error: httpx.TransportError) -> Unreachable:
    """In words, without what a URL may hold of secrets."""
    where = _address(error) or f"the {side}"
    if "WRONG_VERSION_NUMBER" in str(error):
        plain = where.replace("https://", "http://", 1)
        return Unreachable(f"{where} does not speak TLS; try {plain}")
    if isinstance(error, httpx.ConnectError) and side != Side.ELSEWHERE:
        return Unreachable(
            f"cannot connect to {where} ({error}); is `cmcl up` running? For another address of "
            f"{_NAMES[side]}, set {_SET_BY[side]}"
        )
    return Unreachable(f"{where} does not answer: {error or type(error).__name__}")


def _raise_if_foreign(side: Side, found: Side | None, response: httpx.Response) -> None:
    if found in (None, side):
        return
    raise WrongServer(
        f"{_address(response) or 'this address'} is {_NAMES[found]}, and this needs {_NAMES[side]}: "
        f"set {_SET_BY[side]} to its address",
        response.status_code,
        request_id=response.headers.get("x-request-id"),
    )


def _foreign(side: Side, response: httpx.Response) -> WrongServer | None:
    """WrongServer if the server does not know the path and is not one of ours, else None."""
    is_ours = response.headers.get(_SERVER_HEADER) in _SERVERS
    body = json_object(response)
    if is_ours or (body is not None and _side_of_body(body) is not None):
        return None
    is_page = body is None and response.status_code < httpx.codes.INTERNAL_SERVER_ERROR
    if not is_page and response.status_code not in _UNKNOWN_PATH:
        return None
    return not_of_cmcl(side, response)


def not_of_cmcl(side: Side, response: httpx.Response) -> WrongServer:
    """The error of an answer whose form none of our servers has."""
    body = json_object(response) or {}
    words = one_line(str(body.get("detail") or body.get("title") or response.text))
    return WrongServer(
        f"{_address(response) or 'the server'} answered HTTP {response.status_code} "
        f"({words or 'no text'}), which is not an answer of {_NAMES[side]}: set {_SET_BY[side]} to "
        "its address",
        response.status_code,
        request_id=response.headers.get("x-request-id"),
    )


def _side_of_body(body: Json) -> Side | None:
    """By the form of an answer: RFC 9457 and pages of `items`, or OpenAI's errors and lists."""
    if str(body.get("type", "")).startswith("urn:cmcl:problem:") or "next_cursor" in body:
        return Side.SERVICE
    if isinstance(body.get("error"), dict) or body.get("object") == "list":
        return Side.EMBEDDINGS
    return None


def _address(source: httpx.TransportError | httpx.Response) -> str | None:
    """Scheme and host that were asked; None where no request is attached."""
    try:
        url = source.request.url
    except RuntimeError:
        return None
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _object(response: httpx.Response, side: Side) -> Json:
    body = json_object(response)
    if body is None:
        raise not_of_cmcl(side, response)
    return body


def condition(revision: int | None) -> dict[str, str]:
    """The condition that nothing was changed since."""
    return {} if revision is None else {"if-match": f'"{revision}"'}


def content_type(body: object) -> dict[str, str]:
    return {} if body is None else {"content-type": "application/json"}


def is_repeatable(request: Request, outcome: httpx.TransportError | httpx.Response) -> bool:
    """A condition on what was read holds once: if the first request did arrive, the next fails."""
    if isinstance(outcome, httpx.Response):
        never_done = outcome.status_code == httpx.codes.TOO_MANY_REQUESTS
    else:
        never_done = isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout)
    return never_done or "if-match" not in request.headers
