"""Which version answers: decided in the database, then mirrored to object storage.

A new version always becomes the live one, also when a user had rolled back before: the dataset was
posted to be answered with. Who wants to keep an older version rolls back again; the history tells.
"""

from datetime import datetime

from sqlalchemy import Connection

from service.control.context import Context
from service.control.intake import get_model
from service.database import models, versions
from service.database.rows import ModelRecord, PromotionRecord
from service.errors import Conflict, FieldProblem, NotFound
from workers.contract.errors import InvalidVersion
from workers.contract.version import LivePointer
from workers.storage.versions import read_live, write_live

RECONCILER = "reconciler"
USER = "user"


def choose(
    connection: Connection, model: str, version: int, reason: str, now: datetime
) -> LivePointer:
    """A user promotes or rolls back. Raises NotFound, and Conflict before its files are in place.

    Choosing the version that answers already changes nothing.
    """
    current = get_model(connection, model)
    found = versions.find(connection, model, version)
    if found is None:
        message = f"model {model!r} has no version {version}; permitted: {_range(current)}"
        raise NotFound(message, FieldProblem("version", message, version))
    if found.stored_at is None:
        raise Conflict(f"version {version} of {model!r} is still being stored; try again shortly")
    if current.live_version == version:
        return LivePointer(generation=current.live_generation, version=version)
    return move_live(connection, model, version, reason, USER, now)


def move_live(
    connection: Connection, name: str, version: int, reason: str, actor: str, now: datetime
) -> LivePointer:
    """Let the version answer, under the next generation, and remember why."""
    model = models.lock(connection, name)
    if model is None:
        raise NotFound(f"there is no model {name!r}")
    generation = model.live_generation + 1
    promotion = PromotionRecord(name, generation, version, model.live_version, reason, actor, now)
    versions.add_promotion(connection, promotion)
    models.set_live(connection, name, version, generation)
    return LivePointer(generation=generation, version=version)


def mirror(context: Context, model: ModelRecord) -> None:
    """Show the replicas what the database says."""
    if model.live_version is None:
        return
    pointer = LivePointer(generation=model.live_generation, version=model.live_version)
    write_live(context.store, model.name, pointer)
    with context.database.write() as connection:
        if models.set_mirrored(connection, model.name, pointer.generation):
            return
        now = get_model(connection, model.name)
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


def _range(model: ModelRecord) -> str:
    return f"1 to {model.head}" if model.head else "none yet"
