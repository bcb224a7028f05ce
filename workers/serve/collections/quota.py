"""Quotas of collections: every replica has all collections, rows and bytes in memory.

Rows and bytes are shared by owners as in `cmcl.fairness`, so that one owner cannot fill what another one needs.
Checked against what this replica has read and is writing, without reading the store: where several replicas write at
the same moment, a limit can be exceeded by what the others add between two polls.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from cmcl.contract.errors import WorkerError
from cmcl.fairness import fits, share_now
from workers.serve.collections.indexer import CollectionSnapshot, rows_at_most
from workers.serve.collections.revision_log import Revision
from workers.serve.settings import CollectionLimits

# A write that the follower has not seen after so long was to a deleted collection.
_WRITE_SECONDS = 600.0


class TooManyCollections(WorkerError):
    """The owner has the permitted number of collections."""


class CollectionFull(WorkerError):
    """The collection has the permitted number of rows."""


class AllFull(WorkerError):
    """The owner's collections, or all together, have the permitted rows or bytes."""


class RowsUncounted(WorkerError):
    """The limit may be reached; known when what was written has been read. Trying again can help."""


@dataclass(eq=False)
class _Write:
    """Rows that are being written, or were written as `revision`, and are in no snapshot yet."""

    target: Revision
    rows: int
    bytes: int
    began: float
    revision: int | None = None


@dataclass
class _Use:
    """Use by the owner and by all. `sure`: was read; the rest is an upper bound."""

    own: int = 0
    own_sure: int = 0
    total: int = 0
    total_sure: int = 0

    def add(self, amount: int, sure: int, *, is_own: bool) -> None:
        self.total += amount
        self.total_sure += sure
        if is_own:
            self.own += amount
            self.own_sure += sure


class CollectionsQuota:
    """Used from any thread. `snapshots`: what this replica has read."""

    def __init__(
        self,
        limits: CollectionLimits,
        snapshots: Callable[[], Mapping[str, CollectionSnapshot]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._snapshots = snapshots
        self._clock = clock
        self._lock = threading.Lock()
        # Created here and not yet read again: otherwise a burst would not be counted.
        self._new: dict[str, str | None] = {}
        # Deleted here and not yet read again, with the revision.
        self._deleted: dict[str, int] = {}
        self._writes: list[_Write] = []

    @contextmanager
    def for_one_more(self, name: str, owner: str | None) -> Iterator[None]:
        """Context manager around creating a collection. Raises TooManyCollections, unless it exists."""
        with self._lock:
            theirs = self._names_of(owner)
            if name not in theirs and len(theirs) >= self._limits.collections:
                raise TooManyCollections(
                    f"you have {len(theirs)} collections, which is the limit of one owner; "
                    f"delete one before you create {name!r}"
                )
            self._new[name] = owner
        try:
            yield
        except BaseException:
            with self._lock:
                self._new.pop(name, None)
            raise

    def deleted(self, revision: Revision) -> None:
        """Note a deletion by this revision."""
        with self._lock:
            self._new.pop(revision.name, None)
            self._deleted[revision.name] = revision.revision
            self._writes = [each for each in self._writes if each.target.name != revision.name]

    def check(self, target: Revision, rows: int, size: int) -> None:
        """Check that so many rows, of so many bytes in memory, fit.

        Raises CollectionFull, AllFull, RowsUncounted.
        """
        with self._lock:
            self._check(target, rows, size)

    @contextmanager
    def writing(
        self, target: Revision, rows: int, size: int
    ) -> Iterator[Callable[[Revision], None]]:
        """Count rows from before they are written until they are read. Raises as `check` does.

        The block gets a function to call with the revision that has them; otherwise nothing was written.
        """
        with self._lock:
            self._check(target, rows, size)
            begun = _Write(target, rows, size, self._clock())
            self._writes.append(begun)

        def done(revision: Revision) -> None:
            begun.revision = revision.revision

        try:
            yield done
        finally:
            if begun.revision is None:
                with self._lock:
                    self._writes = [each for each in self._writes if each is not begun]

    def bytes(self) -> int:
        """Bytes of all collections in memory, as far as they were read."""
        return sum(each.read_bytes_total for each in self._snapshots().values())

    def _check(self, target: Revision, rows: int, size: int) -> None:
        snapshots = self._snapshots()
        self._writes = [each for each in self._writes if self._is_uncounted(each, snapshots)]
        self._check_collection(target, rows, snapshots)
        self._check_use(
            self._rows_used(target, snapshots), (rows, self._limits.all_rows), target, "rows"
        )
        self._check_use(
            self._bytes_used(target, snapshots), (size, self._limits.all_bytes), target, "bytes"
        )

    def _is_uncounted(self, write: _Write, snapshots: Mapping[str, CollectionSnapshot]) -> bool:
        if write.revision is None:
            return True
        known = snapshots.get(write.target.name)
        if known is not None and known.revision.revision >= write.revision:
            return False
        return self._clock() - write.began < _WRITE_SECONDS

    def _check_collection(
        self, target: Revision, more: int, snapshots: Mapping[str, CollectionSnapshot]
    ) -> None:
        known = snapshots.get(target.name)
        index = known.index if known else None
        rows = rows_at_most(target, index) + self._rows_behind(target)
        if rows + more <= self._limits.rows:
            return
        if index is None or index.revision != target.revision or self._rows_behind(target):
            raise RowsUncounted(
                f"collection {target.name!r} may have {rows} of {self._limits.rows} rows; what "
                "was written last is still being read; try again"
            )
        raise CollectionFull(
            f"collection {target.name!r} has {rows} rows, and {more} more would be over the "
            f"limit of {self._limits.rows}"
        )

    def _rows_behind(self, target: Revision) -> int:
        """Rows that are being written to it, or were after this revision of it."""
        return sum(
            each.rows
            for each in self._writes
            if each.target.name == target.name
            and (each.revision is None or each.revision > target.revision)
        )

    def _rows_used(self, target: Revision, snapshots: Mapping[str, CollectionSnapshot]) -> _Use:
        use = _Use()
        for name, each in snapshots.items():
            if name != target.name:
                use.add(each.rows, each.rows, is_own=each.revision.owner == target.owner)
        known = snapshots.get(target.name)
        rows = rows_at_most(target, known.index if known else None)
        use.add(rows, rows, is_own=True)
        for write in self._writes:
            if write.target.name != target.name:
                use.add(write.rows, 0, is_own=write.target.owner == target.owner)
        use.add(self._rows_behind(target), 0, is_own=True)
        return use

    def _bytes_used(self, target: Revision, snapshots: Mapping[str, CollectionSnapshot]) -> _Use:
        use = _Use()
        for each in snapshots.values():
            is_own = each.revision.owner == target.owner
            use.add(each.read_bytes_total + each.unread_bytes, each.read_bytes_total, is_own=is_own)
        for write in self._writes:
            use.add(write.bytes, 0, is_own=write.target.owner == target.owner)
        return use

    def _check_use(self, use: _Use, wanted: tuple[int, int], target: Revision, what: str) -> None:
        """`wanted`: how much more, of which limit. Raises AllFull, RowsUncounted."""
        more, limit = wanted
        if _permitted(target.owner, limit, use.own, use.total, more):
            return
        if _permitted(target.owner, limit, use.own_sure, use.total_sure, more):
            raise RowsUncounted(
                f"collections may have {use.total} of {limit} {what}, and yours {use.own}; what was "
                "written last is still being read; try again"
            )
        setting = "max_searched_rows" if what == "rows" else "max_collections_bytes"
        own = f"your collections have {use.own} {what} in memory, all together {use.total}"
        permitted = f"permitted are {limit} for all"
        if target.owner is not None and use.total + more <= limit:
            share = share_now(limit, use.own, use.total)
            permitted += f", and {share} for yours at this moment, so that other owners can add"
        raise AllFull(
            f"{own}, and these items {more}; {permitted}: remove items or collections, or ask "
            f"the operator of the endpoint for a larger {setting}"
        )

    def _names_of(self, owner: str | None) -> set[str]:
        snapshots = self._snapshots()
        self._new = {each: of for each, of in self._new.items() if each not in snapshots}
        self._deleted = {
            each: by
            for each, by in self._deleted.items()
            if each in snapshots and snapshots[each].revision.revision < by
        }
        present = snapshots.keys() - self._deleted.keys()
        theirs = {each for each in present if snapshots[each].revision.owner == owner}
        return theirs | {each for each, of in self._new.items() if of == owner}


def _permitted(owner: str | None, limit: int, held: int, total: int, more: int) -> bool:
    """The operator, and all callers where no keys are required, may use all that is free."""
    if owner is None:
        return total + more <= limit
    return fits(limit, held, total, more)
