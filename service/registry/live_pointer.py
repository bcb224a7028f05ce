"""Mirrors a model's serving state from the database to live.json, which replicas read.

The contents of live.json have one revision, incremented with each change; the database records the
mirrored revision. A late process may overwrite or recreate what another has written or removed: it
notices when it records its revision, and the mirror is written again. If a process dies before that, the
comparison at the next start repairs it.
"""

from sqlalchemy import Connection

from cmcl.contract.errors import InvalidVersion
from cmcl.contract.rollout import Canary
from cmcl.contract.version import LivePointer
from service.context import Context
from service.database.queries import canaries, models, versions
from service.database.rows import ModelRecord
from service.stale_database import check_not_behind
from workers.storage.versions import read_live, remove_live, write_live


def mirror(context: Context, name: str) -> None:
    """Write live.json from the database, or remove a deleted model's, and announce it.

    Raises StaleDatabase if live.json is ahead of the database: it is never overwritten then.
    """
    check_not_behind(context, name)
    with context.database.read() as connection:
        model = models.find(connection, name)
        pointer = None if model is None else _pointer(connection, model)
    if model is None or pointer is None:
        return
    if model.deleted_at is None:
        write_live(context.store, name, pointer)
    else:
        remove_live(context.store, name)
    context.announcer.announce(name, pointer)
    with context.database.write() as connection:
        if models.set_mirrored(connection, name, model.live_revision):
            return
        now = models.lock(connection, name)
        if now is not None and now.live_revision != model.live_revision:
            # Another process mirrored a later revision, and this write may have come after it.
            models.forget_mirrored(connection, name)


def recheck_mirror(context: Context, model: ModelRecord) -> None:
    """After a start, mirror again if live.json differs from what the database recorded.

    Raises StaleDatabase.
    """
    check_not_behind(context, model.name)
    if _differs(context, model):
        with context.database.write() as connection:
            models.forget_mirrored(connection, model.name)


def _pointer(connection: Connection, model: ModelRecord) -> LivePointer | None:
    """None before the first promotion.

    The model was read first: what is read here has its revision or a newer one, which is mirrored
    next. In the opposite order it could be older, and stay so.
    """
    if model.live_version is None:
        return None
    canary = canaries.running(connection, model.name)
    return LivePointer(
        generation=model.live_generation,
        version=model.live_version,
        revision=model.live_revision,
        owner=model.owner,
        retired=versions.retired(connection, model.name),
        candidate=canary
        and Canary(
            version=canary.version,
            revision=canary.revision,
            share=canary.plan.share,
            shadow=canary.plan.shadow,
        ),
    )


def _differs(context: Context, model: ModelRecord) -> bool:
    try:
        pointer = read_live(context.store, model.name)
    except InvalidVersion:
        return True
    if model.deleted_at is not None:
        return pointer is not None
    return pointer is None or pointer.revision < model.mirrored_revision
