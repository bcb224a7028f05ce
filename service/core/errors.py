"""Errors of the control plane. One table maps them to HTTP status, `service.api.problems`.

    ServiceError                    base class
    ├── Rejected                    the request cannot be done as asked
    │   ├── NotFound                no such model, dataset, job or version
    │   ├── Conflict                it conflicts with the current state, or with a quota of the owner
    │   │   └── StaleDatabase       object storage is newer than the database
    │   ├── Unprocessable           a field has a value that is not permitted
    │   ├── UnsupportedMediaType    the body is not declared as what is needed
    │   ├── BodyTooLarge            the body has more bytes than permitted
    │   ├── IncompleteBody          the connection ended before the body did
    │   ├── PreconditionFailed      it was changed since it was read (If-Match)
    │   ├── Unauthorized            no key, or none that is valid
    │   ├── Forbidden               the key does not permit it
    │   └── TooManyRequests         too many requests of one owner
    ├── IssuerUnavailable           the token issuer did not respond; a retry can help
    └── DatabaseError
        ├── DatabaseUnavailable     the database did not respond; a retry can help
        └── WriteConflict           another transaction wrote the same unique value first

The launchers' errors are beside their port, `service.launchers.port`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class FieldProblem:
    """What is wrong with one field of a request."""

    field: str
    message: str
    value: object = None


class ServiceError(Exception):
    """Base class of the errors that the control plane raises."""


class Rejected(ServiceError):
    """The request cannot be done as asked. `fields` names the fields that are wrong, if any."""

    def __init__(self, message: str, *fields: FieldProblem) -> None:
        super().__init__(message)
        self.fields = fields


class NotFound(Rejected):
    """There is no such model, dataset, job or version."""


class Conflict(Rejected):
    """The request conflicts with the current state of the resource."""


class StaleDatabase(Conflict):
    """Object storage is newer than the database, which was lost or restored from an old dump."""


class Unprocessable(Rejected):
    """A field has a value that is not permitted."""


class UnsupportedMediaType(Rejected):
    """The body is not declared to be of the type that is needed."""


class BodyTooLarge(Rejected):
    """The body has more bytes than permitted."""


class IncompleteBody(Rejected):
    """The connection ended before the body did; nothing was kept of it."""


class PreconditionFailed(Rejected):
    """It was changed since the request's author read it (If-Match)."""


class Unauthorized(Rejected):
    """There is no key, or it is unknown, expired or revoked: the response does not say which."""


class Forbidden(Rejected):
    """The key is valid and does not permit this."""


class TooManyRequests(Rejected):
    """Too many requests; retry after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class IssuerUnavailable(ServiceError):
    """The token issuer did not respond, so tokens cannot be verified; a retry can help."""


class DatabaseError(ServiceError):
    """The database refused or failed."""


class DatabaseUnavailable(DatabaseError):
    """The database did not respond; a retry can help."""


class WriteConflict(DatabaseError):
    """Another transaction wrote the same unique value first; a new read shows it."""
