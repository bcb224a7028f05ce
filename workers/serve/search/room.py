"""Whether another collection, or more rows, still fit: every replica holds all of them in memory.

Decided by what this replica has read, without asking the store: where several replicas are asked at the
same moment a limit can be passed by what they take on in the time of a look.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cmcl.contract.errors import WorkerError
from workers.serve.search.held import Shown, rows_at_most
from workers.serve.search.limits import Limits
from workers.serve.search.stored.revision import Revision


class TooManyCollections(WorkerError):
    """The owner has as many as one may have."""


class CollectionFull(WorkerError):
    """It has as many rows as one collection may have."""


class AllFull(WorkerError):
    """All collections together have as many rows, or bytes, as a replica holds."""


class RowsUncounted(WorkerError):
    """Perhaps it is full; that is known when what was written has been read. Trying again can help."""


class Room:
    """Used from any thread. `shown`: what this replica has read."""

    def __init__(self, limits: Limits, shown: Callable[[], Mapping[str, Shown]]) -> None:
        self._limits = limits
        self._shown = shown
        self._lock = threading.Lock()
        # Made here, and not yet read again: else a burst would be counted as none.
        self._new: dict[str, str | None] = {}
        # Deleted here, by which revision, and not yet read again.
        self._deleted: dict[str, int] = {}

    @contextmanager
    def for_one_more(self, name: str, owner: str | None) -> Iterator[None]:
        """While the collection is made. Raises TooManyCollections, unless it is there already."""
        with self._lock:
            theirs = self._names_of(owner)
            if name not in theirs and len(theirs) >= self._limits.collections:
                raise TooManyCollections(
                    f"there are {len(theirs)} collections of yours, which is as many as one owner "
                    f"may have here; delete one before you make {name!r}"
                )
            self._new[name] = owner
        try:
            yield
        except BaseException:
            with self._lock:
                self._new.pop(name, None)
            raise

    def deleted(self, revision: Revision) -> None:
        """It was deleted here, by this revision."""
        with self._lock:
            self._new.pop(revision.name, None)
            self._deleted[revision.name] = revision.revision

    def _names_of(self, owner: str | None) -> set[str]:
        shown = self._shown()
        self._new = {each: of for each, of in self._new.items() if each not in shown}
        self._deleted = {
            each: by
            for each, by in self._deleted.items()
            if each in shown and shown[each].revision.revision < by
        }
        present = shown.keys() - self._deleted.keys()
        theirs = {each for each in present if shown[each].revision.owner == owner}
        return theirs | {each for each, of in self._new.items() if of == owner}

    def check_rows(self, target: Revision, more: int) -> None:
        """Whether so many rows fit. Raises CollectionFull, AllFull, RowsUncounted."""
        shown = self._shown()
        known = shown.get(target.name)
        index = known.index if known else None
        rows = rows_at_most(target, index)
        if rows + more > self._limits.rows:
            if index is None or index.revision != target.revision:
                raise RowsUncounted(
                    f"collection {target.name!r} may have {rows} of {self._limits.rows} rows; what "
                    "was written last is still being read; try again"
                )
            raise CollectionFull(
                f"collection {target.name!r} has {rows} rows, and {more} more would be over the "
                f"limit of {self._limits.rows}"
            )
        others = sum(each.rows for name, each in shown.items() if name != target.name)
        if others + rows + more > self._limits.all_rows:
            raise AllFull(
                f"the collections of this endpoint have {others + rows} rows together, and {more} "
                f"more would be over the limit of {self._limits.all_rows}; remove items or "
                "collections, or ask whoever runs it for a larger max_searched_rows"
            )

    def bytes(self) -> int:
        """What all collections take in memory, with vectors of two versions, as far as was read."""
        return sum(each.sure_bytes for each in self._shown().values())

    def check_bytes(self, more: int) -> None:
        """Whether what takes so many bytes fits. Raises AllFull, RowsUncounted."""
        shown = self._shown().values()
        sure = sum(each.sure_bytes for each in shown)
        unread = sum(each.unread_bytes for each in shown)
        limit = self._limits.all_bytes
        if sure + more > limit:
            raise AllFull(
                f"the collections of this endpoint take {sure} bytes of memory, and these items "
                f"{more}, which is over the limit of {limit}; remove items or collections, or ask "
                "whoever runs it for a larger max_collections_bytes"
            )
        if sure + unread + more > limit:
            raise RowsUncounted(
                f"the collections of this endpoint may take {sure + unread} of {limit} bytes of "
                f"memory; what was written last is still being read; try again"
            )
