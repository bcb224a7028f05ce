"""A replica's collections without HTTP and Ray: a real store and indexer, with versions set by the
benchmark."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import LivePointer
from cmcl.storage.local import LocalStore
from workers.model.heads import ModalityHeads
from workers.serve.collections import writes
from workers.serve.collections.follower import CollectionsFollower
from workers.serve.collections.index import GRAPH_FROM_ROWS, Index
from workers.serve.collections.segments import Entry
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import LoadedHeads, ServedVersion

_NAME, _MODEL = "things", "model"
_LONGEST_SECONDS = 1800.0


class World:
    """One collection of one model. A context manager: it runs the indexer's thread."""

    def __init__(self, folder: Path, spec: ModelSpec, graph_from: int = GRAPH_FROM_ROWS) -> None:
        self._store = LocalStore(folder)
        self._spec = spec
        self._pairs = frozenset(
            ModalityPair(first=first, second=second)
            for first, second in combinations(sorted(spec.modalities), 2)
        )
        self._live = LiveVersions()
        self._follower = CollectionsFollower(self._store, self._live, 0.05, graph_from)
        wanted = writes.CollectionSpec(_NAME, _MODEL, None, "float16")
        self._collection = writes.create(self._store, wanted)
        self._generation = 0

    def __enter__(self) -> "World":
        self._follower.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._follower.stop()

    def write(self, entries: Sequence[Entry]) -> None:
        """Write one change. It is not searchable yet on return."""
        self._collection = writes.write(self._store, self._collection, entries, lambda _: True)

    def swap(self, heads: ModalityHeads) -> float:
        """Make these heads the live version. Return the seconds until searches use them with all
        entries."""
        self._generation += 1
        number = self._generation
        version = ServedVersion(
            *(
                _MODEL,
                number,
                self._spec,
                LoadedHeads(heads),
                datetime.now(UTC),
                self._pairs,
                (number,),
            )
        )
        pointer = LivePointer(generation=number, version=number)
        began = time.perf_counter()
        self._live.update(_MODEL, pointer)
        self._live.swap(_MODEL, pointer, version)
        self._follower.wake()
        self._wait(lambda index: index.version is version)
        return time.perf_counter() - began

    @property
    def index(self) -> Index:
        """Return the index that is currently searched."""
        snapshot = self._follower.snapshot(_NAME)
        if snapshot is None or snapshot.index is None:
            raise RuntimeError("the collection has no index yet")
        return snapshot.index

    def _wait(self, is_there: Callable[[Index], bool]) -> None:
        revision, deadline = self._collection.revision, time.monotonic() + _LONGEST_SECONDS
        while time.monotonic() < deadline:
            snapshot = self._follower.snapshot(_NAME)
            index = snapshot.index if snapshot else None
            if index is not None and index.revision >= revision and is_there(index):
                return
            time.sleep(0.005)
        raise TimeoutError(f"no new index within {_LONGEST_SECONDS:g} s")
