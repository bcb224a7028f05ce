"""Removing folders, so that one that cannot be removed now holds up nothing else."""

import logging

from cmcl.contract.errors import StorageError
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)


def remove_all(store: ObjectStore, prefix: str) -> bool:
    """Remove everything under a prefix. False if something is left: a later sweep finds it."""
    try:
        for key in list(store.keys(prefix)):
            store.delete(key)
    except StorageError as error:
        logger.warning("%s could not be removed for now: %s", prefix, error)
        return False
    return True
