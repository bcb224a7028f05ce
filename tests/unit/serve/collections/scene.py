"""Collections without HTTP: a real store, prepared versions, a follower that tests advance."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cmcl.contract.version import LivePointer
from tests.fakes.executor import EndingThreads
from tests.fakes.flaky_store import FlakyStore
from tests.unit.serve.conftest import Clock
from tests.unit.serve.served_versions import rows, version
from workers.serve.collections.columns import Versions
from workers.serve.collections.follower import CollectionsFollower
from workers.serve.collections.registry import Registry
from workers.serve.collections.searching import Searched, SearchQuery, SearchResult
from workers.serve.collections.table import CollectionSpec, CollectionTable, Row, State
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import Float32Array, ServedVersion

NAME = "things"
MODEL = "m"
EVERYONE = lambda life: True  # noqa: E731


def entries(
    first: int, count: int, modality: str = "image", payload: str | None = None
) -> list[Row]:
    """Rows `<modality>-<number>`, whose features follow from their numbers."""
    return [
        Row(f"{modality}-{number}", modality, feature(modality, number), payload)
        for number in range(first, first + count)
    ]


def feature(modality: str, number: int) -> Float32Array:
    return rows(modality, 1, seed=number)[0]


def removals(ids: Sequence[str]) -> list[Row]:
    return [Row(each, "", None, None) for each in ids]


def spec(**fields: object) -> CollectionSpec:
    plain = {
        "name": NAME,
        "model": MODEL,
        "owner": None,
        "feature_type": "float32",
        "vector_type": "float32",
        "dimensions": None,
        "text_fields": (),
    }
    return CollectionSpec.model_validate(plain | fields)


def create(store: FlakyStore, **fields: object) -> State:
    return Registry(store).create(spec(**fields))


@dataclass
class Scene:
    """A replica's collections follower, run in the test's thread. `name`: of the replica."""

    store: FlakyStore
    live: LiveVersions = field(default_factory=LiveVersions)
    clock: Clock = field(default_factory=Clock)
    name: str = "one"

    def __post_init__(self) -> None:
        self.generation = 0
        self.served: dict[int, ServedVersion] = {}
        self.registry = Registry(self.store)
        self.threads = EndingThreads(self.clock)
        self.follower = CollectionsFollower(
            self.registry, self.live, self.version, self.name, 0.01, self.threads
        )

    def version(self, model: str, number: int) -> ServedVersion:
        """A version as the store has it."""
        return self.served.setdefault(number, version(number))

    def swap(self, number: int, served: ServedVersion | None = None) -> ServedVersion:
        """Make this version live."""
        self.generation += 1
        pointer = LivePointer(generation=self.generation, version=number)
        if served is not None:
            self.served[number] = served
        served = self.version(MODEL, number)
        self.live.update(MODEL, pointer)
        assert self.live.swap(MODEL, pointer, served)
        return served

    @property
    def table(self) -> CollectionTable:
        found = self.registry.newest(NAME)
        return (found or create(self.store)).table

    def add(self, new: Sequence[Row], mark: str | None = None) -> int:
        """Make one change, as a replica does; return its revision."""
        versions = Versions(self.table.read().head.spec, self.live, self.version)
        versions.live()
        return self.table.write(new, versions.embed, mark)

    def settle(self) -> Searched:
        """Poll, and finish all work; return what is searched."""
        self.follower.poll()
        while self.follower.work():
            pass
        self.follower.poll()
        return self.searched()

    def searched(self) -> Searched:
        snapshot = self.follower.snapshots()[NAME]
        assert snapshot.searched is not None, snapshot.problem
        return snapshot.searched


def embedded(served: ServedVersion, modality: str, number: int) -> Float32Array:
    import torch

    vector_E: Float32Array = served.heads.embed(
        modality, torch.from_numpy(feature(modality, number)[None])
    )[0].numpy()
    return vector_E


def search(searched: Searched, modality: str, number: int, **wanted: object) -> SearchResult:
    """Search with the feature of that number, embedded by the version that is searched with."""
    query_E = embedded(searched.version, modality, number)
    return searched.search(SearchQuery(**{"top_k": 10, "query_E": query_E, **wanted}))  # type: ignore[arg-type]


def brute_force(
    searched: Searched,
    query_E: Float32Array,
    candidates: Sequence[tuple[str, int]],
    top_k: int = 10,
) -> list[str]:
    """Ids of the nearest of these rows, by plain products in float64."""
    scores = {
        f"{modality}-{number}": float(
            embedded(searched.version, modality, number).astype(np.float64) @ query_E
        )
        for modality, number in candidates
    }
    return sorted(scores, key=lambda each: -scores[each])[:top_k]
