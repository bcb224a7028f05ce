"""A request to change the live version or the canary: who asks, why, and whether it can be done."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from service.database.queries import models
from service.database.rows import ModelRecord, VersionRecord
from service.errors import Conflict, PreconditionFailed
from service.lookup import get_model, get_version
from service.principal import Principal


@dataclass(frozen=True)
class PromotionRequest:
    """Who asks, why, and which generation they have seen (None: not stated)."""

    principal: Principal
    reason: str
    now: datetime
    seen_generation: int | None = None


def lock_as_seen(connection: Connection, model: str, request: PromotionRequest) -> ModelRecord:
    """Lock the model, and check that it is as the request has seen it. Raises NotFound, PreconditionFailed."""
    models.lock(connection, model)
    current = get_model(connection, model, request.principal)
    if request.seen_generation is not None and request.seen_generation != current.live_generation:
        raise PreconditionFailed(
            f"generation {current.live_generation} of {model!r} is live (version "
            f"{current.live_version}), not generation {request.seen_generation}; read it again"
        )
    return current


def servable_version(
    connection: Connection, model: str, version: int, principal: Principal
) -> VersionRecord:
    """Return the version if its files are stored and it is not retired. Raises NotFound and Conflict."""
    found = get_version(connection, model, version, principal)
    if found.stored_at is None:
        raise Conflict(f"version {version} of {model!r} is still being stored; try again shortly")
    if found.retired_at is not None:
        raise Conflict(f"version {version} of {model!r} was retired and can no longer be served")
    return found
