"""What can go wrong with a request, as the client is told.

ApiError
├── InvalidRequest       400   the message names field, value and what is permitted
│   └── WrongRow               one row of it
├── Unauthorized         401   no key, or one that is not valid
├── Forbidden            403   it is there, and not for this key
├── NotFound             404   no such model, version or path
├── BodyTimeout          408   the body did not arrive in time
├── Conflict             409   the name is taken
├── BodyTooLarge         413
├── UnsupportedMedia     415   a body that nobody here reads
├── Unprocessable        422   well formed, and these versions cannot do it
├── Overloaded           429   with Retry-After
├── HeadersTooLarge      431
├── Full                 507   as much is stored as may be
├── VersionDamaged       500   stored, but it fails its checks
├── NotInstalled         501   an optional part that this endpoint has not
├── NotReady             503   with Retry-After
└── DeadlineExceeded     504   the request took longer than it may
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

_RETRY_SOON = MappingProxyType({"retry-after": "1"})


class ApiError(Exception):
    """What a client is told: `message` for people, `code` and `param` for programs."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"
    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or self.default_code


class InvalidRequest(ApiError):
    """The request itself is wrong; sending it again cannot help."""

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
        """The same of a row that the client knows by another number, and by this name."""
        return WrongRow(row, self._reason, self.code, field, name)


class Unauthorized(ApiError):
    """The same words for every key that is not valid: they must not tell whether it exists."""

    status = 401
    kind = "authentication_error"
    default_code = "invalid_api_key"
    headers = MappingProxyType({"www-authenticate": "Bearer"})


class Forbidden(ApiError):
    """The message says whose key may."""

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
    """What is to be made is there already, and is something else."""

    status = 409
    kind = "invalid_request_error"
    default_code = "name_taken"


class BodyTooLarge(ApiError):
    """More bytes than one request may have."""

    status = 413
    kind = "invalid_request_error"
    default_code = "body_too_large"


class UnsupportedMedia(ApiError):
    """The header Content-Type or Accept names a form that is not read or written here."""

    status = 415
    kind = "invalid_request_error"
    default_code = "unsupported_media_type"


class Unprocessable(ApiError):
    """What is asked for cannot be had from these versions, however it is asked for."""

    status = 422
    kind = "invalid_request_error"
    default_code = "unprocessable"


class Overloaded(ApiError):
    """Too many rows at once; the same request can succeed in a moment."""

    status = 429
    kind = "rate_limit_error"
    default_code = "too_many_rows_in_flight"
    headers = _RETRY_SOON


class HeadersTooLarge(ApiError):
    """More than anybody needs to say beside the body."""

    status = 431
    kind = "invalid_request_error"
    default_code = "headers_too_large"


class Full(ApiError):
    """As much is stored as may be: something must be removed before more can be added."""

    status = 507
    kind = "invalid_request_error"
    default_code = "storage_full"


class VersionDamaged(ApiError):
    """The version is stored but cannot be used."""

    default_code = "version_damaged"


class NotInstalled(ApiError):
    """Whoever runs the endpoint can install it."""

    status = 501
    default_code = "not_installed"


class NotReady(ApiError):
    """Not yet; the same request can succeed in a moment."""

    status = 503
    kind = "service_unavailable_error"
    default_code = "not_ready"
    headers = _RETRY_SOON


class DeadlineExceeded(ApiError):
    """The time that the request may take is over."""

    status = 504
    kind = "timeout_error"
    default_code = "deadline_exceeded"
