"""Tasks of the garbage collector that list the store: folders that no row names, blobs that no manifest names, and
encoded items.

Objects have no time. The time at which each is first found without a name is stored, by the clock of this service, and
deleted if it is named again. Some time later it is doomed, then removed.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from cmcl.contract.errors import InvalidVersion, ObjectNotFound, StorageError
from cmcl.contract.modality import NAME_PATTERN
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import read_candidate, read_version
from service.context import Context
from service.database.queries import maintenance
from service.database.queries.maintenance import Kind
from service.database.stale import check_not_lost

logger = logging.getLogger(__name__)

# How long a folder or blob that nothing names is kept: the database may be the wrong one, or an old dump, and an attempt
# writes blobs before the manifest that names them.
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
    check_not_lost(context.store, context.database)
    for root in ROOTS:
        names = [name for name in context.store.folders(root.folder) if root.name.match(name)]
        unknown: set[str] = set()
        for batch in _batches(names):
            unknown |= _sweep_batch(context, root, batch)
        if root.may_have_orphans:
            doomed = _doomed(context, root.folder, {f"{root.folder}{name}" for name in unknown})
            for folder in doomed:
                logger.warning("removing %s: no row has named it for a day", folder)
            _forget(context, [each for each in doomed if remove_all(context.store, f"{each}/")])


def _sweep_batch(context: Context, root: _Root, names: list[str]) -> set[str]:
    """Remove folders of rows that are marked swept; return those that no row names."""
    with context.database.read() as connection:
        known = maintenance.known(connection, root.kind, names)
        swept = maintenance.swept(connection, root.kind, names)
    for name in sorted(swept):
        remove_all(context.store, f"{root.folder}{name}/")
    return set(names) - known


def _doomed(context: Context, root: str, unnamed: set[str]) -> list[str]:
    """Those folders or blobs under a root that nothing has named for a day."""
    now = context.clock()
    with context.database.write() as connection:
        return maintenance.update_orphans(connection, root, unnamed, now - ORPHAN_GRACE, now)


def _forget(context: Context, removed: Sequence[str]) -> None:
    with context.database.write() as connection:
        maintenance.forget_removed(connection, removed)


def sweep_blobs(context: Context) -> None:
    """Remove blobs that no manifest has named for a day.

    Roots are the versions with files, also those that only the bucket knows, and candidates that may be published.
    Blobs are listed first, so that what is written later is not judged. A candidate names blobs of its parent, which is
    a root, and others that its attempt has written. Before it is published, these are rescued (`publish.judge`): a blob
    may have been written again when it was about to be removed. Raises StaleDatabase as `sweep_orphans`.
    """
    check_not_lost(context.store, context.database)
    found = set(context.store.keys(layout.blobs()))
    named = {layout.blob(sha256) for sha256 in _named(context)}
    doomed = _doomed(context, layout.blobs(), found - named)
    for key in doomed:
        context.store.delete(key)
    _forget(context, doomed)


def _named(context: Context) -> set[str]:
    """Digests of all blobs that something names."""
    with context.database.read() as connection:
        named = maintenance.named_blobs(connection)
        known = maintenance.known_versions(connection)
        attempts = maintenance.open_attempts(connection)
    stored = filter(None, map(layout.version_of, context.store.keys(layout.models())))
    unknown = [partial(read_version, context.store, *each) for each in stored if each not in known]
    for read in (*unknown, *(partial(read_candidate, context.store, *each) for each in attempts)):
        try:
            named |= read().blobs
        except (ObjectNotFound, InvalidVersion):
            # An attempt that has written none yet, or one that cannot be published.
            continue
    return named


def _batches(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _BATCH):
        yield names[start : start + _BATCH]


def sweep_encoded(context: Context) -> None:
    """Remove items that were encoded longer ago than they are kept. Preparation encodes them again."""
    before = (context.clock() - _ENCODED_KEPT).timestamp()
    for key in list(context.store.keys(layout.encoded())):
        if layout.encoded_at(key) <= before:
            context.store.delete(key)
