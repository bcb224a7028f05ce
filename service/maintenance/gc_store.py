"""Tasks of the garbage collector that list the store: folders that no row names, and encoded items.

Folders have no time. The time at which each is first found without a row is stored, by the clock of this service, deleted
if a row names it again, and the folder is removed some time later.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from cmcl.contract.errors import StorageError
from cmcl.contract.modality import NAME_PATTERN
from service.context import Context
from service.database.queries import maintenance
from service.database.queries.maintenance import Kind
from service.stale_database import check_not_lost
from workers.storage import layout
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

# How long a folder that no row names is kept: the database may be the wrong one, or an old dump.
ORPHAN_GRACE = timedelta(days=1)
_BATCH = 500
# Features of items after they were encoded: equal items in other datasets of the owner are not encoded again.
_ENCODED_KEPT = timedelta(days=7)


@dataclass(frozen=True)
class _Root:
    """A folder whose subfolders belong to one row each."""

    folder: str
    kind: Kind
    name: re.Pattern[str]
    may_have_orphans: bool = True


# Subfolders with other names are never touched.
ROOTS = (
    _Root("datasets/", "datasets", re.compile(r"^ds-[0-9a-f]{12}\Z")),
    _Root("runs/", "jobs", re.compile(r"^job-[0-9a-f]{12}\Z")),
    _Root("uploads/", "uploads", re.compile(r"^up-[0-9a-f]{12}\Z")),
    # A model without a row may be all that is left of someone's work, so it is never removed.
    _Root("models/", "models", re.compile(NAME_PATTERN), may_have_orphans=False),
)


def remove_all(store: ObjectStore, prefix: str) -> bool:
    """Remove every object under a prefix. False if some are left, for a later round."""
    try:
        for key in list(store.keys(prefix)):
            store.delete(key)
    except StorageError as error:
        logger.warning("%s could not be removed; will retry: %s", prefix, error)
        return False
    return True


def sweep_orphans(context: Context) -> None:
    """Remove folders of rows that are marked swept, and orphans: folders that no row has named for a day.

    The first kind is left by a process that died between the mark and the removal, and by an attempt that wrote
    after its end. Raises StaleDatabase: with a lost database, every folder would be an orphan.
    """
    check_not_lost(context)
    for root in ROOTS:
        names = [name for name in context.store.folders(root.folder) if root.name.match(name)]
        unknown: set[str] = set()
        for batch in _batches(names):
            unknown |= _sweep_batch(context, root, batch)
        if root.may_have_orphans:
            _watch_orphans(context, root, unknown)


def _sweep_batch(context: Context, root: _Root, names: list[str]) -> set[str]:
    """Remove folders of rows that are marked swept; return those that no row names."""
    with context.database.read() as connection:
        known = maintenance.known(connection, root.kind, names)
        swept = maintenance.swept(connection, root.kind, names)
    for name in sorted(swept):
        remove_all(context.store, f"{root.folder}{name}/")
    return set(names) - known


def _watch_orphans(context: Context, root: _Root, unknown: set[str]) -> None:
    """Note new orphans, remove those past their grace period, forget those that a row names again."""
    now = context.clock()
    with context.database.write() as connection:
        since = {
            folder: seen_at
            for folder, seen_at in maintenance.orphans_since(connection, root.folder).items()
            if root.name.match(folder.removeprefix(root.folder))
        }
        found = {f"{root.folder}{name}" for name in unknown}
        maintenance.note_orphans(connection, sorted(found - since.keys()), now)
        maintenance.forget_orphans(connection, since.keys() - found)
    for folder in sorted(found & since.keys()):
        if now - since[folder] >= ORPHAN_GRACE:
            logger.warning("removing %s: no row has named it for a day", folder)
            remove_all(context.store, f"{folder}/")


def _batches(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _BATCH):
        yield names[start : start + _BATCH]


def sweep_encoded(context: Context) -> None:
    """Remove items that were encoded longer ago than they are kept. Preparation encodes them again."""
    before = (context.clock() - _ENCODED_KEPT).timestamp()
    for key in list(context.store.keys(layout.encoded())):
        if layout.encoded_at(key) <= before:
            context.store.delete(key)
