"""A database that was lost, or restored from an old dump, does no harm to what the bucket knows.

An empty one beside a bucket with models is a lost one. Going on would do harm: the first model of an old
name would write over its versions, the list of keys would be written without any, and after a day the
sweeper would remove datasets that no row speaks of. One that is older than the bucket would show the
replicas generations that they have seen with other versions.
"""

import logging

from sqlalchemy import make_url

from cmcl.contract.errors import InvalidVersion, StorageError
from cmcl.contract.version import LivePointer
from service.context import Context
from service.database.queries import models
from service.database.rows import ModelRecord
from service.errors import StaleDatabase
from service.lookup import get_model
from service.principal import Principal
from workers.storage import layout
from workers.storage.versions import read_live

logger = logging.getLogger(__name__)

_WHERE_MODELS_LIE = (layout.model_records(), layout.models())


def check_at_start(context: Context) -> None:
    """Raises StaleDatabase, in words for whoever starts the service on a lost database."""
    try:
        check_not_lost(context)
    except StorageError as error:
        # A service starts without its store, and carries on once it answers. Whatever a lost database
        # could harm looks again.
        logger.warning("whether the database was lost is not known: %s", error)


def check_not_lost(context: Context) -> None:
    """Raises StaleDatabase if no model is known here and some are in the bucket; StorageError.

    Keys alone make no database: whoever lost it may have made the first ones already.
    """
    if _has_models(context):
        return
    prefix = next((each for each in _WHERE_MODELS_LIE if _has_anything(context, each)), None)
    # Looked at again: another process may have made the first model, and its files, in between.
    if prefix is None or _has_models(context):
        return
    raise StaleDatabase(
        f"the database has no model, and {context.store.uri} has something under {prefix}: this "
        f"is another database, or it was lost. {_rebuild(context)}; for a new start, give CMCL_STORE_URI "
        "another place"
    )


def _rebuild(context: Context) -> str:
    """What restores a database, as a whole command; a password in its address is hidden."""
    database = make_url(context.settings.database_url).render_as_string(hide_password=True)
    return (
        f"`cmcl admin rebuild --database-url {database} --store {context.store.uri}` restores it "
        "(`python -m service admin rebuild` where the client is not installed, with "
        "CMCL_DATABASE_URL and CMCL_STORE_URI set)"
    )


def _has_models(context: Context) -> bool:
    with context.database.read() as connection:
        return models.has_any(connection)


def _has_anything(context: Context, prefix: str) -> bool:
    return next(iter(context.store.keys(prefix)), None) is not None


def check_may_change(context: Context, name: str, principal: Principal) -> None:
    """Before somebody changes what replicas are told. Raises NotFound, StaleDatabase.

    A change raises the database's generation or revision: behind one that is lost it would come to
    show as known what it never knew, and replicas would not follow. While the store is away a roll
    back is taken all the same; whoever mirrors it looks again.
    """
    with context.database.read() as connection:
        get_model(connection, name, principal)
    try:
        check_not_behind(context, name)
    except StorageError as error:
        logger.warning("whether the database is behind for model %s is not known: %s", name, error)


def check_not_behind(context: Context, name: str) -> None:
    """Raises StaleDatabase if replicas were told of more than this database knows; StorageError.

    The pointer is read first: it is only written once the database has what it shows.
    """
    pointer = _shown(context, name)
    with context.database.read() as connection:
        model = models.find(connection, name)
    if pointer is None or model is None or _is_known(pointer, model):
        return
    raise StaleDatabase(
        f"{layout.live_pointer(name)} has generation {pointer.generation} (version {pointer.version}) and "
        f"revision {pointer.revision}, the database {model.live_generation} (version "
        f"{model.live_version}) and {model.live_revision}: it was lost, or is older than the bucket. "
        f"Nothing of model {name!r} is published. Stop the service; {_rebuild(context)}"
    )


def _shown(context: Context, name: str) -> LivePointer | None:
    """None for one that is damaged as well: nobody follows that."""
    try:
        return read_live(context.store, name)
    except InvalidVersion:
        return None


def _is_known(pointer: LivePointer, model: ModelRecord) -> bool:
    """A generation has one version for ever: with another one, it is of another history."""
    if pointer.generation == model.live_generation and pointer.version != model.live_version:
        return False
    return pointer.generation <= model.live_generation and pointer.revision <= model.live_revision
