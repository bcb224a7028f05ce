"""Tasks of the garbage collector that list the store: folders that no row names, encoded rows that no dataset needs.

Objects have no time of their last use. The time at which each is first found unused is stored, by the clock of this
service, deleted if it is used again, and the object is removed some time later.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from cmcl.contract.errors import StorageError
from cmcl.contract.modality import NAME_PATTERN
from service.context import Context
from service.database.queries import maintenance, preparations
from service.database.queries.maintenance import Kind
from service.stale_database import check_not_lost
from workers.storage import layout
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

# How long a folder that no row names is kept: the database may be the wrong one, or an old dump.
ORPHAN_GRACE = timedelta(days=1)
_BATCH = 500
_AFTER_UNIT = re.compile(r"-(?:training|evaluation)-|\.json\Z")


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
    """Remove encoded units that no dataset has needed for the time in the settings.

    A unit that is encoded already is taken by the next preparation of the same rows, and no row names it until its
    manifest is taken. So nothing of an owner is removed while a dataset of that owner is prepared.
    Raises StaleDatabase: with a lost database, no dataset would need any.
    """
    check_not_lost(context)
    prefix, now = layout.encoded(), context.clock()
    units: dict[str, list[str]] = defaultdict(list)
    for key in context.store.keys(prefix):
        units[_unit_of(key)].append(key)
    needed = _needed_units(context)
    with context.database.read() as connection:
        since = maintenance.orphans_since(connection, prefix)
    unneeded = units.keys() - needed
    for batch in _batches(sorted(unneeded - since.keys())):
        with context.database.write() as connection:
            maintenance.note_orphans(connection, batch, now)
    for batch in _batches(sorted(since.keys() - unneeded)):
        with context.database.write() as connection:
            maintenance.forget_orphans(connection, batch)
    kept = timedelta(seconds=context.settings.encoded_retention_seconds)
    expired = [unit for unit in sorted(unneeded & since.keys()) if now - since[unit] >= kept]
    for batch in _batches(expired):
        needed = _needed_units(context)
        with context.database.read() as connection:
            busy = preparations.owners(connection)
        for unit in batch:
            owner = unit.removeprefix(prefix).partition("/")[0]
            if owner not in busy and unit not in needed:
                _remove_unit(context, units[unit])


def _unit_of(key: str) -> str:
    """Return the common prefix of the keys of a unit: its record and its shards."""
    folder, _, name = key.rpartition("/")
    return f"{folder}/{_AFTER_UNIT.split(name)[0]}"


def _needed_units(context: Context) -> set[str]:
    root = f"{context.store.uri}/"
    with context.database.read() as connection:
        uris = maintenance.needed_shards(connection)
    return {_unit_of(uri.removeprefix(root)) for uri in uris if uri.startswith(root)}


def _remove_unit(context: Context, keys: list[str]) -> None:
    """Delete the objects of a unit, its record first: while there is a record, preparation may use its shards."""
    for key in sorted(keys, key=lambda key: not key.endswith(".json")):
        context.store.delete(key)
