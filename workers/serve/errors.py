"""Errors of requests, with their HTTP status.

ApiError
├── InvalidRequest       400   the message names field, value and what is permitted
│   └── WrongRow               one row of it
├── Unauthorized         401   no key, or one that is not valid
├── Forbidden            403   the key does not permit it
├── NotFound             404   no such model, version or path
├── BodyTimeout          408   the body did not arrive in time
├── Conflict             409   with the state of a collection, a version or an encoder
│   └── ModalityNotLearned     the head of the modality is still the initial one
├── BodyTooLarge         413
├── UnsupportedMedia     415   a format that is not read or written here
├── Unprocessable        422   well formed, but these versions cannot do it
├── Overloaded           429   with Retry-After
├── HeadersTooLarge      431
├── Full                 507   the storage limit is reached
├── VersionDamaged       500   stored, but fails its checks
├── NotInstalled         501   an optional part is not installed
├── NotReady             503   with Retry-After
└── DeadlineExceeded     504   the request took longer than it may
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from cmcl.fairness import OverLimit

# Of a value of the client, in a message.
_LONGEST_VALUE = 60
_RETRY_SOON = MappingProxyType({"retry-after": "1"})


class ApiError(Exception):
    """An error with an HTTP answer: `message` for people, `code` and `param` for programs."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"
    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or self.default_code


class InvalidRequest(ApiError):
    """The request is invalid; sending it again cannot help."""

    status = 400
    kind = "invalid_request_error"
    default_code = "invalid_value"


class WrongRow(InvalidRequest):
    """One row cannot be used; `reason` continues the sentence that begins with the row's name."""

    def __init__(
        self,
        row: int,
        reason: str,
        code: str | None = None,
        field: str = "input",
        name: str | None = None,
    ) -> None:
        """`name`: what the client calls the row; by default "input row 3"."""
        super().__init__(f"{name or f'{field} row {row}'} {reason}", field, code)
        self.row = row
        self._reason = reason

    def at(self, row: int, field: str, name: str) -> "WrongRow":
        """Return the same error for a row that has another number and name in the request."""
        return WrongRow(row, self._reason, self.code, field, name)


class Unauthorized(ApiError):
    """One message for every key that is not valid: it must not reveal whether the key exists."""

    status = 401
    kind = "authentication_error"
    default_code = "invalid_api_key"
    headers = MappingProxyType({"www-authenticate": "Bearer"})


class Forbidden(ApiError):
    """The key does not permit the request; the message says which one would."""

    status = 403
    kind = "permission_error"
    default_code = "forbidden"


class NotFound(ApiError):
    """No such model or version."""

    status = 404
    kind = "invalid_request_error"
    default_code = "model_not_found"


class BodyTimeout(ApiError):
    """The client sends too slowly, or has stopped."""

    status = 408
    kind = "invalid_request_error"
    default_code = "body_timeout"
    headers = MappingProxyType({"connection": "close"})


class Conflict(ApiError):
    """The name is taken by something with other properties, or an encoder is not the one that is needed."""

    status = 409
    kind = "invalid_request_error"
    default_code = "name_taken"


class ModalityNotLearned(Conflict):
    """The version has learned no dataset with this modality: embeddings of its initial head would be noise."""

    default_code = "modality_not_learned"


class BodyTooLarge(ApiError):
    """More bytes than one request may have."""

    status = 413
    kind = "invalid_request_error"
    default_code = "body_too_large"


class UnsupportedMedia(ApiError):
    """The header Content-Type or Accept names a format that is not read or written here."""

    status = 415
    kind = "invalid_request_error"
    default_code = "unsupported_media_type"


class Unprocessable(ApiError):
    """These versions cannot do what the request asks for."""

    status = 422
    kind = "invalid_request_error"
    default_code = "unprocessable"


class Overloaded(ApiError):
    """Too many rows at once; the same request can succeed in a moment."""

    status = 429
    kind = "rate_limit_error"
    default_code = "too_many_rows_in_flight"
    headers = _RETRY_SOON

    @classmethod
    def from_limit(cls, error: OverLimit) -> "Overloaded":
        """What a request is answered that is over a quota."""
        return cls(str(error), code="share_exceeded" if error.is_share else None)


class HeadersTooLarge(ApiError):
    """The headers are larger than permitted."""

    status = 431
    kind = "invalid_request_error"
    default_code = "headers_too_large"


class Full(ApiError):
    """The storage limit is reached: remove something before adding more."""

    status = 507
    kind = "invalid_request_error"
    default_code = "storage_full"


class VersionDamaged(ApiError):
    """The version is stored but cannot be used."""

    default_code = "version_damaged"


class NotInstalled(ApiError):
    """An optional part is not installed; the operator can install it."""

    status = 501
    default_code = "not_installed"


class NotReady(ApiError):
    """Not ready yet; the same request can succeed in a moment."""

    status = 503
    kind = "service_unavailable_error"
    default_code = "not_ready"
    headers = _RETRY_SOON


class DeadlineExceeded(ApiError):
    """The request took longer than it may."""

    status = 504
    kind = "timeout_error"
    default_code = "deadline_exceeded"


def shortened(value: object) -> str:
    """Return a value of the client as it is shown in a message."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        names = ", ".join(map(repr, value))[:_LONGEST_VALUE]
        return f"an object with {names or 'no fields'}"
    text = json.dumps(value[:_LONGEST_VALUE] if isinstance(value, str) else value, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
