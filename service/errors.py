"""Errors of the control plane. Their HTTP status stands in one table, `service.api.problems`.

    ServiceError                    anything we raise on purpose
    ├── Refused                     the request cannot be done as asked
    │   ├── NotFound                no such model, dataset, job or version
    │   ├── Conflict                it contradicts what is there already
    │   │   └── StaleDatabase      object storage knows more than the database
    │   ├── Unprocessable           a field has a value that is not permitted
    │   ├── UnsupportedMediaType    the body is not declared as what is needed
    │   ├── BodyTooLarge            the body has more bytes than permitted
    │   ├── IncompleteBody              the connection ended before the body did
    │   ├── PreconditionFailed      it was changed since it was read (If-Match)
    │   ├── Unauthorized            no key, or none that is valid
    │   ├── Forbidden               the key does not permit it
    │   └── TooManyRequests         more than the key's share
    ├── DiskFull                      this machine's disk is full; a retry can help later
    ├── IssuerUnavailable           who issues tokens did not answer; a retry can help
    └── DatabaseError
        ├── DatabaseUnavailable     the database did not answer; a retry can help
        └── WriteConflict           another transaction wrote the same unique value first

The launchers' errors stand beside their port, `service.launchers.port`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class FieldProblem:
    """What is wrong with one field, in the user's words."""

    field: str
    message: str
    value: object = None


class ServiceError(Exception):
    """Anything the control plane raises on purpose."""


class Refused(ServiceError):
    """The request cannot be done as asked. `fields` says where it is wrong, if somewhere."""

    def __init__(self, message: str, *fields: FieldProblem) -> None:
        super().__init__(message)
        self.fields = fields


class NotFound(Refused):
    """There is no such model, dataset, job or version."""


class Conflict(Refused):
    """The request conflicts with the current state of the resource."""


class StaleDatabase(Conflict):
    """Object storage knows more than the database, which was lost or restored from an old dump."""


class Unprocessable(Refused):
    """A field has a value that is not permitted."""


class UnsupportedMediaType(Refused):
    """The body is not declared to be of the type that is needed."""


class BodyTooLarge(Refused):
    """The body has more bytes than permitted."""


class IncompleteBody(Refused):
    """The connection ended before the body did; nothing was kept of it."""


class PreconditionFailed(Refused):
    """It was changed since the request's author read it (If-Match)."""


class Unauthorized(Refused):
    """There is no key, or it is unknown, expired or revoked: which of these is not told."""


class Forbidden(Refused):
    """The key is valid and does not permit this."""


class TooManyRequests(Refused):
    """More requests than the key's share; `retry_after` seconds help."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class IssuerUnavailable(ServiceError):
    """Who issues tokens did not answer, so they cannot be checked; trying again can help."""


class DiskFull(ServiceError):
    """This machine's disk is full; trying again can help once there is room."""


class DatabaseError(ServiceError):
    """The database refused or failed."""


class DatabaseUnavailable(DatabaseError):
    """The database did not answer; trying again can help."""


class WriteConflict(DatabaseError):
    """Another transaction wrote the same unique value first; reading again shows it."""
