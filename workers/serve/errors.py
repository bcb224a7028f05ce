"""Errors of requests, with their HTTP status. The tree says what the names do not.

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

# Characters of a client's value in a message.
_LONGEST_VALUE = 60
_RETRY_SOON = MappingProxyType({"retry-after": "1"})


class ApiError(Exception):
    """An error with an HTTP answer: `message` for people, `code` and `param` for programs, `kind` as OpenAI's `type`."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "invalid_request_error"
    default_code: ClassVar[str] = "internal_error"
    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or self.default_code


class InvalidRequest(ApiError):
    status = 400
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
    status = 403
    kind = "permission_error"
    default_code = "forbidden"


class NotFound(ApiError):
    status = 404
    default_code = "model_not_found"


class BodyTimeout(ApiError):
    status = 408
    default_code = "body_timeout"
    headers = MappingProxyType({"connection": "close"})


class Conflict(ApiError):
    status = 409
    default_code = "name_taken"


class ModalityNotLearned(Conflict):
    default_code = "modality_not_learned"


class BodyTooLarge(ApiError):
    status = 413
    default_code = "body_too_large"


class UnsupportedMedia(ApiError):
    status = 415
    default_code = "unsupported_media_type"


class Unprocessable(ApiError):
    status = 422
    default_code = "unprocessable"


class Overloaded(ApiError):
    status = 429
    kind = "rate_limit_error"
    default_code = "too_many_rows_in_flight"
    headers = _RETRY_SOON

    @classmethod
    def from_limit(cls, error: OverLimit) -> "Overloaded":
        """What a request is answered that is over a quota."""
        return cls(str(error), code="share_exceeded" if error.is_share else None)


class HeadersTooLarge(ApiError):
    status = 431
    default_code = "headers_too_large"


class Full(ApiError):
    status = 507
    default_code = "storage_full"


class VersionDamaged(ApiError):
    kind = "server_error"
    default_code = "version_damaged"


class NotInstalled(ApiError):
    status = 501
    kind = "server_error"
    default_code = "not_installed"


class NotReady(ApiError):
    status = 503
    kind = "service_unavailable_error"
    default_code = "not_ready"
    headers = _RETRY_SOON


class DeadlineExceeded(ApiError):
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
