"""Collections without HTTP: a real store, prepared versions, a follower that tests advance."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cmcl.contract.api.endpoint import FeatureType
from cmcl.contract.version import LivePointer
from tests.fakes.flaky_store import FlakyStore
from tests.unit.serve.served_versions import rows, version
from workers.serve.collections import writes
from workers.serve.collections.follower import CollectionsFollower
from workers.serve.collections.index import Index, SearchQuery, SearchResult
from workers.serve.collections.index_builder import project
from workers.serve.collections.revision_log import Revision
from workers.serve.collections.segments import Entry
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import Float32Array, ServedVersion

NAME = "things"
MODEL = "m"
EVERYONE = lambda revision: True  # noqa: E731


def entries(
    first: int, count: int, modality: str = "image", payload: str | None = None
) -> list[Entry]:
    """Rows `<modality>-<number>`, whose features follow from their numbers."""
    return [
        Entry(f"{modality}-{number}", modality, feature(modality, number), payload)
        for number in range(first, first + count)
    ]


def feature(modality: str, number: int) -> Float32Array:
    return rows(modality, 1, seed=number)[0]


def removals(ids: Sequence[str]) -> list[Entry]:
    return [Entry(each, "", None, None) for each in ids]


def create(store: FlakyStore, feature_type: FeatureType = "float32") -> Revision:
    return writes.create(store, writes.CollectionSpec(NAME, MODEL, None, feature_type))


def add(store: FlakyStore, new: Sequence[Entry]) -> Revision:
    """Make one change of the collection's newest revision."""
    return writes.write(store, create(store), new, EVERYONE)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Scene:
    """A replica's collections follower, run in the test's thread."""

    store: FlakyStore
    graph_from: int = 1000
    live: LiveVersions = field(default_factory=LiveVersions)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.generation = 0
        self.follower = CollectionsFollower(
            self.store, self.live, 0.01, self.graph_from, self.clock
        )

    def swap(self, number: int, served: ServedVersion | None = None) -> ServedVersion:
        """Make this version live."""
        self.generation += 1
        pointer = LivePointer(generation=self.generation, version=number)
        served = served or version(number)
        self.live.update(MODEL, pointer)
        assert self.live.swap(MODEL, pointer, served)
        return served

    def settle(self) -> Index:
        """Poll, and finish all work; return the index."""
        self.follower.poll()
        while self.follower.work():
            pass
        self.follower.poll()
        return self.index()

    def index(self) -> Index:
        snapshot = self.follower.snapshot(NAME)
        assert snapshot is not None
        assert snapshot.index is not None
        return snapshot.index


def embedded(served: ServedVersion, modality: str, number: int) -> Float32Array:
    vector_E: Float32Array = project(served, modality, feature(modality, number)[None])[0]
    return vector_E


def search(index: Index, modality: str, number: int, **wanted: object) -> SearchResult:
    """Search with the feature of that number, embedded by the index's own version."""
    query_E = embedded(index.version, modality, number)
    return index.search(query_E, SearchQuery(**{"top_k": 10, **wanted}))  # type: ignore[arg-type]


def brute_force(
    index: Index, query_E: Float32Array, candidates: Sequence[tuple[str, int]], top_k: int = 10
) -> list[str]:
    """Ids of the nearest of these rows, by plain products in float64."""
    scores = {
        f"{modality}-{number}": float(
            embedded(index.version, modality, number).astype(np.float64) @ query_E
        )
        for modality, number in candidates
    }
    return sorted(scores, key=lambda each: -scores[each])[:top_k]
