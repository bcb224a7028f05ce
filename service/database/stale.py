"""Keeps a lost or stale database from damaging the bucket.

An empty database beside a bucket with models was lost. Continuing would do damage: the first model with
an old name would overwrite its versions, the key snapshot would be written without keys, and after a day
garbage collection would delete datasets without rows. A database older than the bucket would publish
generations that replicas have already seen with other versions.
"""

import logging

from cmcl.contract.errors import InvalidVersion, StorageError
from cmcl.contract.version import LivePointer
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import read_live
from service.core.errors import StaleDatabase
from service.database.engine import Database
from service.database.queries import models
from service.database.rows import ModelRow

logger = logging.getLogger(__name__)

_MODEL_PREFIXES = (layout.model_records(), layout.models())


def check_at_start(store: ObjectStore, database: Database) -> None:
    """Raises StaleDatabase, with instructions, if the service starts on a lost database."""
    try:
        check_not_stale(store, database)
    except StorageError as error:
        # The service can start while its store is down. Everything that a lost database could damage
        # checks again.
        logger.warning("cannot check whether the database was lost: %s", error)


def check_not_stale(store: ObjectStore, database: Database) -> None:
    """Raises StaleDatabase if the database has no model and the bucket has some; StorageError.

    Keys do not count: after a loss, someone may have created new ones already.
    """
    if _has_models(database):
        return
    prefix = next((each for each in _MODEL_PREFIXES if _has_anything(store, each)), None)
    # Checked again: another process may have created the first model and its files in between.
    if prefix is None or _has_models(database):
        return
    raise StaleDatabase(
        f"the database has no model, and {store.uri} has objects under {prefix}: this "
        f"is the wrong database, or it was lost. {_rebuild(store, database)}; to start afresh, set CMCL_STORE_URI "
        "to another place"
    )


def _rebuild(store: ObjectStore, database: Database) -> str:
    """The complete command that restores a database, with any password hidden."""
    url = database.engine.url.render_as_string(hide_password=True)
    return (
        f"`cmcl admin rebuild --database-url {url} --store {store.uri}` restores it "
        "(`python -m service admin rebuild` where the client is not installed, with "
        "CMCL_DATABASE_URL and CMCL_STORE_URI set)"
    )


def _has_models(database: Database) -> bool:
    with database.read() as connection:
        return models.has_any(connection)


def _has_anything(store: ObjectStore, prefix: str) -> bool:
    return next(iter(store.keys(prefix)), None) is not None


def check_model_not_stale(store: ObjectStore, database: Database, name: str) -> None:
    """Raises StaleDatabase if the live pointer is ahead of the database; StorageError.

    The pointer is read first: it is written only after the database has its contents.
    """
    pointer = _read_pointer(store, name)
    with database.read() as connection:
        model = models.find(connection, name)
    if pointer is None or model is None or _is_known(pointer, model):
        return
    raise StaleDatabase(
        f"{layout.live_pointer(name)} has generation {pointer.generation} (version {pointer.version}) and "
        f"revision {pointer.revision}, the database {model.live_generation} (version "
        f"{model.live_version}) and {model.live_revision}: it was lost, or is older than the bucket. "
        f"Nothing of model {name!r} is published. Stop the service; {_rebuild(store, database)}"
    )


def _read_pointer(store: ObjectStore, name: str) -> LivePointer | None:
    """The live pointer; None if it is missing or damaged (replicas ignore a damaged one)."""
    try:
        return read_live(store, name)
    except InvalidVersion:
        return None


def _is_known(pointer: LivePointer, model: ModelRow) -> bool:
    """A generation never changes its version: a different version belongs to another history."""
    if pointer.generation == model.live_generation and pointer.version != model.live_version:
        return False
    return pointer.generation <= model.live_generation and pointer.revision <= model.live_revision
