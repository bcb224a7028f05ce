"""Before a service starts: an empty database beside a bucket that has records is a lost one.

Going on would do harm. The first model of an old name would write over its versions, the list of keys
would be written without any, and after a day the sweeper would remove datasets that no row speaks of.
"""

import logging

from service.control.context import Context
from service.database.queries import models
from service.errors import Conflict
from workers.contract.errors import StorageError
from workers.storage import layout

logger = logging.getLogger(__name__)


def check_not_lost(context: Context) -> None:
    """Raises Conflict, in words for whoever starts the service."""
    with context.database.read() as connection:
        if models.has_any(connection):
            return
    prefix = layout.model_record("").removesuffix(".json")
    try:
        found = next(iter(context.store.keys(prefix)), None)
    except StorageError as error:
        # A service starts without its store, and carries on once it answers.
        logger.warning("whether the database was lost is not known: %s", error)
        return
    if found is not None:
        raise Conflict(
            f"the database is empty, and {context.store.uri} has records of models: this is another "
            "database, or it was lost. `python -m service admin rebuild` restores it; for a new start, "
            "give CMCL_STORE_URI another place"
        )
