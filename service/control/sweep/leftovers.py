"""Folders that should not be there: of what was given up, and of what no row speaks of.

A process that died between giving up and removing leaves the first kind, and an attempt that wrote
after its end; they go at once. The second kind may be somebody's mistake (another database, an old
backup), so it is watched for a day. Folders with names that are none of our ids are never touched.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from cmcl.contract.modality import NAME_PATTERN
from service.control.context import Context
from service.control.records.guard import check_not_lost
from service.control.sweep.purge import remove_all
from service.database.queries import sweeping
from service.database.queries.sweeping import Kind

logger = logging.getLogger(__name__)

WATCHED = timedelta(days=1)
_BATCH = 500


@dataclass(frozen=True)
class _Root:
    """A folder of folders, each of which belongs to a row."""

    folder: str
    kind: Kind
    name: re.Pattern[str]
    may_have_orphans: bool = True


ROOTS = (
    _Root("datasets/", "datasets", re.compile(r"^ds-[0-9a-f]{12}\Z")),
    _Root("runs/", "jobs", re.compile(r"^job-[0-9a-f]{12}\Z")),
    _Root("runs/", "preflights", re.compile(r"^pf-[0-9a-f]{12}\Z")),
    _Root("uploads/", "uploads", re.compile(r"^up-[0-9a-f]{12}\Z")),
    # A model that no row knows may be all that is left of somebody's work: it is not ours to remove.
    _Root("models/", "models", re.compile(NAME_PATTERN), may_have_orphans=False),
)


def sweep_leftovers(context: Context) -> None:
    """One look at each folder of the store. Raises DatabaseBehind: then no row speaks of anything."""
    check_not_lost(context)
    for root in ROOTS:
        names = [name for name in context.store.folders(root.folder) if root.name.match(name)]
        unknown: set[str] = set()
        for batch in _batches(names):
            unknown |= _sweep_batch(context, root, batch)
        if root.may_have_orphans:
            _sweep_orphans(context, root, unknown)


def _sweep_batch(context: Context, root: _Root, names: list[str]) -> set[str]:
    """Remove what was given up; the folders that no row speaks of."""
    with context.database.read() as connection:
        known = sweeping.known(connection, root.kind, names)
        given_up = sweeping.given_up(connection, root.kind, names)
    for name in sorted(given_up):
        remove_all(context.store, f"{root.folder}{name}/")
    return set(names) - known


def _sweep_orphans(context: Context, root: _Root, unknown: set[str]) -> None:
    """Watch new ones, remove those that were watched long enough, forget those that are none."""
    now = context.clock()
    with context.database.write() as connection:
        since = {
            folder: seen_at
            for folder, seen_at in sweeping.orphans_since(connection, root.folder).items()
            if root.name.match(folder.removeprefix(root.folder))
        }
        there = {f"{root.folder}{name}" for name in unknown}
        sweeping.note_orphans(connection, sorted(there - since.keys()), now)
        sweeping.forget_orphans(connection, since.keys() - there)
    for folder in sorted(there & since.keys()):
        if now - since[folder] >= WATCHED:
            logger.warning("removing %s: no row has spoken of it for a day", folder)
            remove_all(context.store, f"{folder}/")


def _batches(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _BATCH):
        yield names[start : start + _BATCH]
