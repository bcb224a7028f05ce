"""What can go wrong, in words.

CmclError             the service refused
├── InvalidArgument   an argument that cannot be used; nothing was sent
├── Unreachable       no server answers, also after several attempts
├── WrongServer       the address belongs to the other one of our two servers
└── TookTooLong       a job did not end in the time that was given to it
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

Json = dict[str, Any]


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field of a request."""

    field: str
    message: str
    value: object = None


class CmclError(Exception):
    """The message is the server's own words where there are any.

    status: of HTTP; 0 when there was no answer. type: the problem's, `urn:cmcl:problem:...`.
    fields: what is wrong with each field. request_id: what to look for in the service's log.
    retry_after: seconds after which the server wants to be asked again, where it tells.
    """

    def __init__(
        self,
        message: str,
        status: int = 0,
        type: str | None = None,  # noqa: A002 - RFC 9457 calls it so
        fields: tuple[FieldError, ...] = (),
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.fields = fields
        self.request_id = request_id
        self.retry_after = retry_after


class InvalidArgument(CmclError):
    """An argument of a call cannot be used. Nothing was sent, and `status` is 0."""


class Unreachable(CmclError):
    """No answer came. Whether the request was done is unknown."""


class WrongServer(CmclError):
    """The control plane was asked for embeddings, or the embeddings endpoint for the rest."""


class TookTooLong(CmclError):
    """It goes on; only the waiting ended."""


# Too many requests; a gateway without a backend; not ready.
PASSING = frozenset({429, 502, 503, 504})


def may_pass(error: CmclError) -> bool:
    """Whether the same may succeed later: nobody answered, or whoever did has no time now."""
    return isinstance(error, Unreachable) or error.status in PASSING


def refusal(response: httpx.Response) -> CmclError:
    """The error that a response tells of: problem+json, the endpoint's form, or something else."""
    body = json_object(response) or {}
    told = body.get("errors")
    entries = told if isinstance(told, list) else []
    fields = tuple(_field(entry) for entry in entries if isinstance(entry, dict))
    kind = body.get("type")
    return CmclError(
        _words(response, body, fields),
        response.status_code,
        kind if isinstance(kind, str) else None,
        fields,
        response.headers.get("x-request-id"),
        retry_after(response),
    )


def retry_after(response: httpx.Response) -> float | None:
    """In seconds, as the service tells it; a date is left to our own pauses."""
    text = str(response.headers.get("retry-after", ""))
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def secret_lost(what: str, identifier: str) -> CmclError:
    """The answer with the secret never came, and the service does not tell it twice."""
    return CmclError(
        f"{what} {identifier} was made, but the answer that had its secret was lost on the way; "
        f"remove {identifier} and make another one"
    )


def one_line(text: str) -> str:
    """The first 200 characters, without line breaks."""
    return " ".join(text.split())[:200]


def json_object(response: httpx.Response) -> Json | None:
    """None where it is something else, such as a proxy's page."""
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _field(entry: Mapping[str, Any]) -> FieldError:
    return FieldError(
        str(entry.get("field", "")), str(entry.get("message", "")), entry.get("value")
    )


def _words(response: httpx.Response, body: Json, fields: tuple[FieldError, ...]) -> str:
    if not body and json_object(response) is None:
        return f"HTTP {response.status_code}: {one_line(response.text)}"
    if isinstance(body.get("error"), dict):
        return str(body["error"].get("message"))
    parts = [str(body.get("detail") or body.get("title") or f"HTTP {response.status_code}")]
    # The detail often is the message of the only error.
    parts += [f"{each.field}: {each.message}" for each in fields if each.message not in parts[0]]
    return "; ".join(parts)
