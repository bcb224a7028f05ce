"""Errors of the client.

CmclError             the server rejected the request, or failed
├── InvalidArgument   an argument is invalid; nothing was sent
├── Unreachable       no response, after all retries
├── WrongServer       the address is not that of the required server
└── WaitTimeout       a job did not end within the timeout
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

Json = dict[str, Any]


@dataclass(frozen=True)
class FieldError:
    """Error in one field of a request."""

    field: str
    message: str
    value: object = None


class CmclError(Exception):
    """Base class of all errors. The message is the server's, if there is one.

    status: HTTP status; 0 without a response. type: problem type of the control plane, `urn:cmcl:problem:...`. code:
    of the endpoint's error, such as `encoder_timeout`. fields: errors by field. request_id: id of the request in the server's log. retry_after: seconds after
    which to retry, if the server sent it.
    """

    def __init__(  # noqa: PLR0913 - the parts of an error
        self,
        message: str,
        status: int = 0,
        type: str | None = None,  # noqa: A002 - RFC 9457 calls it so
        fields: tuple[FieldError, ...] = (),
        request_id: str | None = None,
        *,
        retry_after: float | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.fields = fields
        self.request_id = request_id
        self.retry_after = retry_after
        self.code = code


class InvalidArgument(CmclError):
    """An argument is invalid. Nothing was sent, and `status` is 0."""


class Unreachable(CmclError):
    """No response. Whether the request was processed is unknown."""


class WrongServer(CmclError):
    """The address is not that of the required server."""


class WaitTimeout(CmclError):
    """The timeout of a wait expired. The job continues."""


# A body that arrived too slowly; too many requests; a gateway without a backend; not ready.
TRANSIENT_STATUSES = frozenset({408, 429, 502, 503, 504})


def is_transient(error: CmclError) -> bool:
    """Whether a retry may succeed: no response, or a status that means busy or not ready."""
    return isinstance(error, Unreachable) or error.status in TRANSIENT_STATUSES


def refusal(response: httpx.Response) -> CmclError:
    """Create the error of a response: problem+json, the endpoint's form, or another one."""
    body = json_object(response) or {}
    listed = body.get("errors")
    entries = listed if isinstance(listed, list) else []
    fields = tuple(_field(entry) for entry in entries if isinstance(entry, dict))
    kind = body.get("type")
    return CmclError(
        _message(response, body, fields),
        response.status_code,
        kind if isinstance(kind, str) else None,
        fields,
        response.headers.get("x-request-id"),
        retry_after=retry_after(response),
        code=error_code(response),
    )


def error_code(response: httpx.Response) -> str | None:
    """Return the code of an error in the endpoint's form."""
    error = (json_object(response) or {}).get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else None


def retry_after(response: httpx.Response) -> float | None:
    """Return Retry-After in seconds. Dates are ignored."""
    text = str(response.headers.get("retry-after", ""))
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def secret_lost_error(what: str, identifier: str) -> CmclError:
    """Create the error for a lost response that had a secret, which is returned only once."""
    return CmclError(
        f"{what} {identifier} was created, but the response with its secret was lost; "
        f"remove {identifier} and create another one"
    )


def one_line(text: str) -> str:
    """Return the first 200 characters, without line breaks."""
    return " ".join(text.split())[:200]


def json_object(response: httpx.Response) -> Json | None:
    """Return the JSON object of a response, or None for other content, such as a proxy's page."""
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _field(entry: Mapping[str, Any]) -> FieldError:
    return FieldError(
        str(entry.get("field", "")), str(entry.get("message", "")), entry.get("value")
    )


def _message(response: httpx.Response, body: Json, fields: tuple[FieldError, ...]) -> str:
    if not body and json_object(response) is None:
        return f"HTTP {response.status_code}: {one_line(response.text)}"
    if isinstance(body.get("error"), dict):
        return str(body["error"].get("message"))
    parts = [str(body.get("detail") or body.get("title") or f"HTTP {response.status_code}")]
    # The detail is often the message of the only error.
    parts += [f"{each.field}: {each.message}" for each in fields if each.message not in parts[0]]
    return "; ".join(parts)
