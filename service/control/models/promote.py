"""Which version answers: decided in the database, then mirrored to object storage.

A new version always becomes the live one, also when a user had rolled back before: the dataset was
posted to be answered with. Who wants to keep an older version rolls back again; the history tells.

Each promotion knows the one that it returns to. A roll back goes there, and returns from then on to
where that one returned: rolling back twice goes back twice, and never forth again.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from service.control.context import Context
from service.control.lookup import get_model, get_version
from service.database.queries import events, models, versions
from service.database.rows import (
    Happening,
    ModelRecord,
    PromotionKind,
    PromotionRecord,
    VersionRecord,
)
from service.errors import Conflict, PreconditionFailed
from service.principal import RECONCILER, Principal
from workers.contract.errors import InvalidVersion
from workers.contract.version import LivePointer
from workers.storage.versions import read_live, write_live


@dataclass(frozen=True)
class Wish:
    """Who wants another version to answer, why, and which generation they had seen (if they say)."""

    principal: Principal
    reason: str
    now: datetime
    seen_generation: int | None = None


def choose(connection: Connection, model: str, version: int, wish: Wish) -> LivePointer:
    """A user promotes a version. Raises NotFound, PreconditionFailed, and Conflict if it cannot.

    Choosing the version that answers already changes nothing.
    """
    current = _as_seen(connection, model, wish)
    found = _that_can_answer(connection, model, version, wish.principal)
    if current.live_version == version:
        return LivePointer(generation=current.live_generation, version=version)
    return _move_live(connection, current, found, "promoted", wish)


def roll_back(connection: Connection, model: str, wish: Wish) -> LivePointer:
    """Back to the version that was promoted before the one that answers.

    Raises NotFound, PreconditionFailed, and Conflict where there is none.
    """
    current = _as_seen(connection, model, wish)
    now = versions.promotion(connection, model, current.live_generation)
    if now is None or now.returns_to is None:
        raise Conflict(f"model {model!r} has no earlier promotion to return to")
    then = versions.promotion(connection, model, now.returns_to)
    if then is None:
        raise RuntimeError(f"model {model!r} has no promotion {now.returns_to}")
    found = _that_can_answer(connection, model, then.version, wish.principal)
    return _move_live(connection, current, found, "rolled_back", wish, then.returns_to)


def promote_published(connection: Connection, version: VersionRecord, now: datetime) -> None:
    """A new version answers as soon as its files are in place."""
    current = models.lock(connection, version.model)
    if current is not None:
        wish = Wish(RECONCILER, "published", now)
        _move_live(connection, current, version, "published", wish)


def mirror(context: Context, model: ModelRecord) -> None:
    """Show the replicas what the database says."""
    if model.live_version is None:
        return
    pointer = LivePointer(generation=model.live_generation, version=model.live_version)
    write_live(context.store, model.name, pointer)
    with context.database.write() as connection:
        if models.set_mirrored(connection, model.name, pointer.generation):
            return
        now = get_model(connection, model.name, RECONCILER)
        if now.live_generation != pointer.generation:
            # Somebody mirrored a later generation meanwhile, and this write may have come after.
            models.forget_mirrored(connection, model.name)


def recheck_mirror(context: Context, model: ModelRecord) -> None:
    """After a start: is live.json what the database believes it is? If not, mirror again."""
    try:
        pointer = read_live(context.store, model.name)
    except InvalidVersion:
        pointer = None
    if pointer is None or pointer.generation < model.mirrored_generation:
        with context.database.write() as connection:
            models.forget_mirrored(connection, model.name)


def _as_seen(connection: Connection, model: str, wish: Wish) -> ModelRecord:
    """The model, locked, if it still is as the wish has seen it."""
    models.lock(connection, model)
    current = get_model(connection, model, wish.principal)
    if wish.seen_generation is not None and wish.seen_generation != current.live_generation:
        raise PreconditionFailed(
            f"generation {current.live_generation} of {model!r} answers (version "
            f"{current.live_version}), not generation {wish.seen_generation}; read it again"
        )
    return current


def _that_can_answer(
    connection: Connection, model: str, version: int, principal: Principal
) -> VersionRecord:
    found = get_version(connection, model, version, principal)
    if found.stored_at is None:
        raise Conflict(f"version {version} of {model!r} is still being stored; try again shortly")
    if found.retired_at is not None:
        raise Conflict(f"version {version} of {model!r} was retired and cannot answer any more")
    return found


def _move_live(
    connection: Connection,
    model: ModelRecord,
    version: VersionRecord,
    kind: PromotionKind,
    wish: Wish,
    returns_to: int | None = None,
) -> LivePointer:
    """Let the version answer, under the next generation, and remember who wanted it and why."""
    generation = model.live_generation + 1
    if kind != "rolled_back":
        returns_to = model.live_generation or None
    promotion = PromotionRecord(
        model=model.name,
        generation=generation,
        version=version.number,
        previous=model.live_version,
        kind=kind,
        returns_to=returns_to,
        reason=wish.reason,
        actor=wish.principal.name,
        created_at=wish.now,
    )
    versions.add_promotion(connection, promotion)
    models.set_live(connection, model.name, version.number, generation)
    # Its job stands among the details: the life of that job had ended when it was published.
    told = {
        "generation": generation,
        "reason": wish.reason,
        "actor": wish.principal.name,
        "job": version.job,
    }
    happening = Happening(
        kind=f"version.{kind}",
        owner=model.owner,
        model=model.name,
        dataset=version.manifest.dataset,
        version=version.number,
        data=told,
    )
    events.tell(connection, happening, wish.now)
    return LivePointer(generation=generation, version=version.number)
