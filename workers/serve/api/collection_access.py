"""What the routes of collections share: access, idempotency keys, and their errors as HTTP errors."""

import asyncio
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ParamSpec, TypeVar

from starlette.requests import Request

from cmcl.contract.errors import InvalidVersion, StorageUnavailable, WorkerError
from cmcl.contract.modality import NAME_PATTERN
from workers.serve.api.context import Replica
from workers.serve.api.openapi import answered_header, header_parameter
from workers.serve.auth import Caller
from workers.serve.collections.collections import (
    AllFull,
    CollectionFull,
    TooManyCollections,
    mark_of,
)
from workers.serve.collections.registry import CollectionExists, Permitted
from workers.serve.collections.table import CollectionBusy, CollectionSpec, NoCollection, State
from workers.serve.errors import (
    ApiError,
    Conflict,
    Forbidden,
    Full,
    InvalidRequest,
    NotFound,
    NotReady,
    Overloaded,
    VersionDamaged,
    shortened,
)

IDEMPOTENCY_KEY = "idempotency-key"
# Set by the proxy, the same in all attempts at one request (cmcl/haproxy.py).
UNIQUE_ID = "x-unique-id"
REVISION = "x-collection-revision"
MIN_REVISION = "x-min-collection-revision"
# For the description.
ASKED_REVISION = header_parameter(
    MIN_REVISION,
    {"type": "integer", "minimum": 1},
    "wait until this revision or a later one is searched; 503 after a while",
)
REPEATABLE = header_parameter(
    IDEMPOTENCY_KEY,
    {"type": "string"},
    "a repeated request with the same key is done once",
)
ANSWERED_REVISION = {REVISION: answered_header({"type": "integer"}, "of the collection")}

P = ParamSpec("P")
T = TypeVar("T")


def checked_name(name: str) -> str:
    """Raises InvalidRequest."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(
            f"the collection's name is {shortened(name)}; permitted are lower-case letters, digits "
            "and inner hyphens, up to 48 characters",
            param="name",
        )
    return name


class OwnerlessCollection(WorkerError):
    """It was created without keys, or by the operator, who alone may use it."""


def listed_for(caller: Caller) -> Permitted:
    """Return a filter for the collections that the caller may use."""
    return lambda spec: caller.owns(spec.owner)


def permitted_to(caller: Caller) -> Permitted:
    """Return a filter for the collections visible to the caller; raises OwnerlessCollection for one without an owner."""

    def permitted(spec: CollectionSpec) -> bool:
        if spec.owner is None and not caller.owns(None):
            raise OwnerlessCollection(
                f"collection {spec.name!r} has no owner, so only the operator's key may use "
                "it: ask the operator to export or delete it, or create your own "
                "under another name"
            )
        return caller.owns(spec.owner)

    return permitted


async def mark_of_write(request: Request, caller: Caller, body: bytes = b"") -> str | None:
    """Return the mark by which a repeated write is recognised, see `table.py`; None where there is none.

    By the client's key, or the proxy's. A client may send the proxy's header, too, but the proxy appends its own.
    """
    name = IDEMPOTENCY_KEY if IDEMPOTENCY_KEY in request.headers else UNIQUE_ID
    if not (given := request.headers.getlist(name)):
        return None
    about = (caller.key, request.method, request.url.path, name, given[-1])
    parts = (*(each.encode() for each in about), body)
    # In another thread: a large body takes a while.
    return await asyncio.to_thread(mark_of, *parts)


async def in_store(do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `do` in another thread, because the store may be slow. Raises ApiError."""
    try:
        return await asyncio.to_thread(do, *args, **kwargs)
    except WorkerError as error:
        raise api_error(error) from error


def api_error(error: WorkerError) -> ApiError:
    """Return the HTTP error of an error of collections."""
    for kind, word in _WORDS.items():
        if isinstance(error, kind):
            return word(str(error))
    # Other errors contain the store's address, which callers must not see.
    reason = f": {error}" if isinstance(error, InvalidVersion) else ""
    return VersionDamaged(
        f"the collection is stored, but it fails its checks{reason}", code="collection_damaged"
    )


def not_found(message: str) -> NotFound:
    """Return the error for a collection that does not exist, or is another owner's."""
    return NotFound(message, "name", "collection_not_found")


def _busy(message: str) -> Overloaded:
    return Overloaded(message, code="collection_busy")


_WORDS: Mapping[type[WorkerError], Callable[[str], ApiError]] = MappingProxyType(
    {
        NoCollection: not_found,
        OwnerlessCollection: lambda message: Forbidden(message, "name", "collection_without_owner"),
        CollectionExists: lambda message: Conflict(message, "name"),
        CollectionBusy: _busy,
        TooManyCollections: lambda message: Full(message, "name", "too_many_collections"),
        AllFull: lambda message: Full(message, "items", "collections_full"),
        CollectionFull: lambda message: InvalidRequest(message, "items", "collection_full"),
        StorageUnavailable: lambda _: NotReady(
            "object storage is unavailable; try again", code="store_unavailable"
        ),
    }
)


async def find(replica: Replica, name: str, caller: Caller) -> State:
    """Read a collection from the store. Raises InvalidRequest, NotFound, NotReady."""
    existing = replica.collections.registry.existing
    return await in_store(existing, checked_name(name), permitted_to(caller))
