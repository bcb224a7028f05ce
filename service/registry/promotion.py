"""What a model serves: promotions and rollbacks."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from service.auth.ownership import get_model, get_version
from service.core.errors import Conflict, PreconditionFailed
from service.core.principal import RECONCILER, Principal
from service.database.queries import jobs, models, versions
from service.database.rows import ModelRow, PromotionKind, PromotionRow, VersionRow


@dataclass(frozen=True)
class PromotionRequest:
    """Who asks, why, what they have seen (None: not stated), and the traceparent of a traced request."""

    principal: Principal
    reason: str
    now: datetime
    seen_generation: int | None = None
    traceparent: str | None = None


def lock_as_seen(connection: Connection, model: str, request: PromotionRequest) -> ModelRow:
    """Lock the model, and check that it is as the request has seen it. Raises NotFound, PreconditionFailed."""
    models.lock(connection, model)
    current = get_model(connection, model, request.principal)
    if request.seen_generation is not None and request.seen_generation != current.live_generation:
        raise PreconditionFailed(
            f"generation {current.live_generation} of {model!r} is live (version "
            f"{current.live_version}), not generation {request.seen_generation}; read it again"
        )
    return current


def _servable_version(
    connection: Connection, model: str, version: int, principal: Principal
) -> VersionRow:
    """Return the version if its manifest is stored and it is not retired. Raises NotFound and Conflict."""
    found = get_version(connection, model, version, principal)
    if found.stored_at is None:
        raise Conflict(f"version {version} of {model!r} is still being stored; try again shortly")
    if found.retired_at is not None:
        raise Conflict(f"version {version} of {model!r} was retired and can no longer be served")
    return found


@dataclass(frozen=True)
class Live:
    """The live version, and its generation: the number of promotions."""

    version: int
    generation: int


def choose(connection: Connection, model: str, version: int, request: PromotionRequest) -> Live:
    """Promote a version. Raises NotFound, PreconditionFailed, and Conflict if it cannot be served.

    Promoting the live version changes nothing.
    """
    current = lock_as_seen(connection, model, request)
    found = _servable_version(connection, model, version, request.principal)
    if current.live_version == version:
        return Live(version, current.live_generation)
    return _move_live(connection, current, found, "promoted", request)


def roll_back(connection: Connection, model: str, request: PromotionRequest) -> Live:
    """Return to the version that was promoted before the live one.

    Raises NotFound, PreconditionFailed, and Conflict where there is none.
    """
    current = lock_as_seen(connection, model, request)
    now = versions.promotion(connection, model, current.live_generation)
    if now is None or now.returns_to is None:
        raise Conflict(f"model {model!r} has no earlier promotion to return to")
    then = versions.promotion(connection, model, now.returns_to)
    assert then is not None, f"model {model!r} has no promotion {now.returns_to}"
    found = _servable_version(connection, model, then.version, request.principal)
    return _move_live(connection, current, found, "rolled_back", request, then.returns_to)


def go_live(connection: Connection, version: VersionRow, now: datetime) -> None:
    """Make a version that was published and stored the live one."""
    current = models.lock(connection, version.model)
    assert current is not None, f"version {version.number} has no model {version.model!r}"
    _move_live(
        connection, current, version, "published", PromotionRequest(RECONCILER, "published", now)
    )


def _move_live(
    connection: Connection,
    model: ModelRow,
    version: VersionRow,
    kind: PromotionKind,
    request: PromotionRequest,
    returns_to: int | None = None,
) -> Live:
    """Make the version live under the next generation, with the model locked; record who asked for it and why."""
    assert version.model == model.name
    generation = model.live_generation + 1
    if kind != "rolled_back":
        returns_to = model.live_generation or None
    promotion = PromotionRow(
        model=model.name,
        generation=generation,
        version=version.number,
        previous=model.live_version,
        kind=kind,
        returns_to=returns_to,
        reason=request.reason,
        actor=request.principal.name,
        created_at=request.now,
    )
    assert returns_to is None or returns_to < generation, "a rollback is to an earlier promotion"
    assert version.retired_at is None
    cause = _cause(connection, version, request)
    models.set_live(connection, model.name, version.number, generation, request.now, cause)
    versions.add_promotion(connection, promotion, version, model.owner)
    return Live(version.number, generation)


def _cause(connection: Connection, version: VersionRow, request: PromotionRequest) -> str | None:
    """Return the traceparent of the request; of the version's job where the reconciler promotes it."""
    if request.principal is not RECONCILER or version.job is None:
        return request.traceparent
    job = jobs.find(connection, version.job)
    return None if job is None else job.traceparent
