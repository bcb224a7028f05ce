"""Which collections there are: for each name a table, `collections/<name>/<number>.lance`.

A name that is deleted can be used again: the next table has a higher number, and revisions above those of the one
before. The table of a deleted collection says so in its head; an hour later its files are removed. So creation is
one step, that of a table which does not exist, and deletion is another, a change of its head.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote, urlsplit

import lance

from cmcl.contract.errors import InvalidVersion, ObjectExists, WorkerError
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.s3 import S3Store
from workers.serve.collections.table import CollectionSpec, CollectionTable, NoCollection, State

# Of one process, for all tables: partitions of indexes (32 bytes of codes for a vector of 256 numbers), and manifests.
_INDEX_CACHE_BYTES = 512 << 20
_METADATA_CACHE_BYTES = 128 << 20
# Searches and exports of a deleted collection may go on for as long, and a repeated deletion is recognised.
_KEPT = timedelta(hours=1)

Permitted = Callable[[CollectionSpec], bool]


class CollectionExists(WorkerError):
    """The name is taken by a collection with other properties."""


class Registry:
    """The collections of an object store. Used from any thread; all methods block. Any may raise StorageUnavailable."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        # Of the last sweep: folders of tables without one.
        self._without_table: set[str] = set()
        self._session = lance.Session(
            index_cache_size_bytes=_INDEX_CACHE_BYTES,
            metadata_cache_size_bytes=_METADATA_CACHE_BYTES,
        )
        scheme, _, path, _, _ = urlsplit(store.uri)
        self._root, self._options = store.uri, {}
        if scheme == "file":
            self._root = unquote(path)
        elif isinstance(store, S3Store):
            # Lance has the same chain of credentials as boto3, but not its endpoint.
            self._options = {"aws_endpoint": store.endpoint_url, "aws_region": store.region}
            if store.endpoint_url.startswith("http:"):
                self._options["allow_http"] = "true"

    def names(self) -> list[str]:
        """Return all names, of deleted collections as well until they are swept."""
        return self._store.folders(layout.collections())

    @property
    def uri(self) -> str:
        """The address of the store."""
        return self._store.uri

    def newest(self, name: str, known: State | None = None) -> State | None:
        """Return the newest table of this name, also of a deleted collection; `known`, where that is still its state.

        Raises InvalidVersion.
        """
        for table in self._tables(name):
            try:
                if known is None or known.table != table:
                    return table.read()
                if known.is_latest():
                    return known
                state = table.read()
            except NoCollection:
                continue  # Its creation has not ended, or its sweeping.
            if state.head.revision < known.head.revision:
                raise InvalidVersion(
                    f"{layout.collection_table(name, table.number)} went back from revision "
                    f"{known.head.revision} to {state.head.revision}: its newest manifest is gone; "
                    "restore it from a backup"
                )
            return state
        return None

    def existing(self, name: str, permitted: Permitted) -> State:
        """Return the collection, if it exists and is visible. Raises NoCollection, InvalidVersion."""
        state = self.newest(name)
        if state is None or state.head.ended_at is not None or not permitted(state.head.spec):
            raise NoCollection(f"there is no collection {name!r}")
        return state

    def create(self, spec: CollectionSpec) -> State:
        """Create a collection, or return it if it has these properties. Raises CollectionExists."""
        while True:
            before = self.newest(spec.name)
            if before is None:
                number = revision = self._retired() + 1
            elif before.head.ended_at is not None:
                number, revision = before.table.number + 1, before.head.revision + 1
            elif before.head.spec == spec:
                return before
            else:
                raise CollectionExists(
                    f"collection {spec.name!r} exists with other properties; delete it first, or "
                    "choose another name"
                )
            try:
                return self._table(spec.name, number).create(spec, revision)
            except ObjectExists:
                continue  # By another one, a moment ago.

    def delete(self, name: str, permitted: Permitted, mark: str | None = None) -> None:
        """Delete a collection with all its items. Raises NoCollection.

        Where the request with this mark has deleted it before, nothing is deleted: by then there may be a new
        collection of that name.
        """
        if mark is not None:
            for table in self._tables(name):
                try:
                    head = table.read().head
                except (NoCollection, InvalidVersion):
                    continue
                if head.ended_at is not None and mark in head.marks:
                    return
        self.existing(name, permitted).table.end(mark)

    def sweep(self, name: str) -> None:
        """Remove the files of tables that were deleted an hour ago, and those that no state of the last hour needs.

        To be called once an hour.
        """
        for table in self._tables(name):
            state = None
            try:
                state = table.read()
                ended_at = state.head.ended_at
                is_due = ended_at is not None and datetime.now(UTC) - ended_at > _KEPT
                if ended_at is None:
                    state.dataset.cleanup_old_versions(_KEPT)
            except InvalidVersion:
                continue  # The operator's to look at.
            except NoCollection:
                # What a sweep left that did not end, or a creation that has not ended since the last sweep.
                is_due = table.uri in self._without_table
                self._without_table.add(table.uri)
            if is_due:
                retired = max(
                    self._retired(), table.number, 0 if state is None else state.head.revision
                )
                self._store.put(layout.collection_number(retired), b"")
                # Manifests first, the newest of them last: a table is there with all its files, or not at all.
                keys = self._store.keys(layout.collection_table(name, table.number) + "/")
                for key in sorted(keys, key=lambda key: ("/_versions/" in key, key), reverse=True):
                    self._store.delete(key)
                self._without_table.discard(table.uri)

    def _retired(self) -> int:
        """The highest number or revision of a swept table. Later ones are above, so no file is written over."""
        keys = [*self._store.keys(layout.collection_numbers())]
        assert keys == sorted(keys), "the highest is last"
        for key in keys[:-1]:
            self._store.delete(key)
        return int(keys[-1].rpartition("/")[2]) if keys else 0

    def _tables(self, name: str) -> list[CollectionTable]:
        """Return its tables, the newest first."""
        folders = self._store.folders(layout.collection(name))
        numbers = [int(each.removesuffix(".lance")) for each in folders]
        return [self._table(name, number) for number in sorted(numbers, reverse=True)]

    def _table(self, name: str, number: int) -> CollectionTable:
        uri = f"{self._root.rstrip('/')}/{layout.collection_table(name, number)}"
        return CollectionTable(uri, number, self._options, self._session)
