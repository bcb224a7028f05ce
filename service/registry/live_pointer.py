"""What the database says about a model, shown to the replicas in live.json.

Everything that live.json tells has one revision, which grows with each change; what was written is
remembered by it. A process that comes late may overwrite, or make again, what another one has written
or removed: it finds out when it wants to remember its revision, and then the mirror is made anew. One
that died before that is made good when a service starts and compares.
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
    """Write live.json as the database has it, or remove a deleted model's, and say so.

    Raises StaleDatabase where it shows more than the database knows: that is never written over.
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
            # Somebody mirrored a later revision meanwhile, and this write may have come after.
            models.forget_mirrored(connection, name)


def recheck_mirror(context: Context, model: ModelRecord) -> None:
    """After a start: is live.json what the database believes it is? If not, mirror again.

    Raises StaleDatabase.
    """
    check_not_behind(context, model.name)
    if _is_wrong(context, model):
        with context.database.write() as connection:
            models.forget_mirrored(connection, model.name)


def _pointer(connection: Connection, model: ModelRecord) -> LivePointer | None:
    """None before the first promotion.

    The model was read first: what is read here is of its revision, or newer, and then another
    revision follows. The other way round it could be older, and stay so.
    """
    if model.live_version is None:
        return None
    trial = canaries.running(connection, model.name)
    return LivePointer(
        generation=model.live_generation,
        version=model.live_version,
        revision=model.live_revision,
        owner=model.owner,
        retired=versions.retired(connection, model.name),
        candidate=trial
        and Canary(
            version=trial.version,
            revision=trial.revision,
            share=trial.plan.share,
            shadow=trial.plan.shadow,
        ),
    )


def _is_wrong(context: Context, model: ModelRecord) -> bool:
    try:
        pointer = read_live(context.store, model.name)
    except InvalidVersion:
        return True
    if model.deleted_at is not None:
        return pointer is not None
    return pointer is None or pointer.revision < model.mirrored_revision
