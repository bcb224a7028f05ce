"""Heads in a replica have a budget of bytes, which is shared fairly between owners."""

import asyncio
import gc
from collections.abc import Sequence

import httpx
import pytest

from cmcl.contract.model import ModelSpec
from cmcl.contract.version import LivePointer, VersionManifest
from cmcl.storage import layout
from cmcl.storage.versions import publish_manifest, write_live
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.versions import publish_version, random_heads, store_version, stored_key
from tests.unit.serve.conftest import Replica
from workers.serve.settings import ServeSettings
from workers.serve.versions.cache import VersionCache
from workers.serve.versions.loading import LoadedHeads, Reservation, StoredVersions

BUDGET = 1 << 20
# Three versions fit.
WIDE = ModelSpec(width=128, modalities={"image": 256, "text": 256}, lift=0)
SMALL = ModelSpec(width=8, modalities={"image": 4, "text": 4}, lift=0)
HUGE = ModelSpec(width=512, modalities={"image": 512, "text": 512}, lift=0)
WIDE_BYTES = 4 * 2 * 128 * 257


def publish(
    replica: Replica,
    model: str,
    version: int = 1,
    spec: ModelSpec = WIDE,
    owner: str | None = None,
) -> VersionManifest:
    """Publish it as the live version in the store."""
    seed = hash((model, version)) % 2**31
    heads = random_heads(spec, seed)
    manifest = publish_version(replica.store, model, version, spec, heads, version)
    write_live(replica.store, model, LivePointer(generation=version, version=version, owner=owner))
    return manifest


def branch(replica: Replica, source: VersionManifest, name: str) -> None:
    """Create a branch as the control plane does."""
    publish_manifest(replica.store, source.as_in_branch(name))
    write_live(replica.store, name, LivePointer(generation=1, version=source.version))


def embed(replica: Replica, model: str, spec: ModelSpec = WIDE) -> httpx.Response:
    return replica.embed(model=model, input=[0.5] * spec.widths["image"])


def in_memory(replica: Replica, models: Sequence[str], version: int = 1) -> list[str]:
    return [model for model in models if replica.cache.get(model, version)]


@pytest.fixture
def narrow(store: FlakyStore) -> Replica:
    """A replica with a budget for three wide versions."""
    return Replica(store, ServeSettings(store=store.uri, max_heads_bytes=BUDGET))


class Watched(StoredVersions):
    """Records a replica's memory whenever heads are read."""

    def __init__(self, replica: Replica, model: str) -> None:
        super().__init__(replica.store)
        self.model = model
        self.beside: list[int] = []
        self.cache: VersionCache | None = None

    def read(self, manifest: VersionManifest, reservation: Reservation) -> LoadedHeads:
        assert self.cache is not None
        self.beside += [each.number for each in self.cache.by_model().get(self.model, [])]
        return super().read(manifest, reservation)


def test_a_swap_has_the_old_version_and_the_new_one_in_memory(narrow: Replica) -> None:
    for model in ("other", "another", "m"):
        publish(narrow, model)
    narrow.poll()
    publish(narrow, "m", 2)
    narrow.poll()
    # Room came from another model, and the old version stays for a roll back.
    assert len(in_memory(narrow, ["other", "another"])) == 1
    assert [each.number for each in narrow.cache.by_model()["m"]] == [1, 2]
    assert narrow.cache.bytes <= BUDGET
    assert embed(narrow, "m").headers["x-model-version"] == "2"


def test_the_version_that_answers_stays_while_its_successor_is_read(narrow: Replica) -> None:
    """It was used least recently, so it would be evicted first."""
    watched = Watched(narrow, "m")
    cache = VersionCache(watched, 4, BUDGET, narrow.metrics)
    watched.cache = cache
    for model in ("m", "other", "another"):
        publish(narrow, model)
        cache.hold(cache.load(model, 1))
    publish(narrow, "m", 2)
    watched.beside.clear()
    cache.load("m", 2)
    assert watched.beside == [1]


def test_what_was_used_least_recently_leaves_first(narrow: Replica) -> None:
    for model in ("a", "b", "c", "d"):
        publish(narrow, model)
    narrow.poll()
    loaded = in_memory(narrow, "abcd")
    assert len(loaded) == 3
    (left_out,) = set("abcd") - set(loaded)
    for model in (loaded[1], loaded[0], loaded[2]):
        assert embed(narrow, model).status_code == 200
    assert embed(narrow, left_out).status_code == 200
    assert in_memory(narrow, "abcd") == sorted({*loaded, left_out} - {loaded[1]})


def test_versions_that_do_not_answer_leave_before_those_that_do(narrow: Replica) -> None:
    for model in ("m", "other"):
        publish(narrow, model)
    narrow.poll()
    store_version(narrow.store, "m", 2, WIDE, random_heads(WIDE, 7))
    assert embed(narrow, "m@2").status_code == 200
    publish(narrow, "third")
    narrow.poll()
    # Nothing is evicted for a model that has not answered yet; its first request makes room.
    assert embed(narrow, "third").status_code == 200
    assert in_memory(narrow, ["m", "other", "third"]) == ["m", "other", "third"]
    assert narrow.cache.get("m", 2) is None


def test_one_owners_wide_models_never_push_out_another_owners_live_one(narrow: Replica) -> None:
    publish(narrow, "small", spec=SMALL, owner="alice")
    narrow.poll()
    for number in range(8):
        publish(narrow, f"wide-{number}", owner="bob")
    narrow.poll()
    narrow.store.calls.clear()
    for number in range(8):
        assert narrow.cache.load_heads(f"wide-{number}", 1)
    assert any("wide-" in call for call in narrow.store.calls), "their owner's heads take turns"
    assert in_memory(narrow, ["small"]) == ["small"]
    assert "small" not in narrow.metrics.evictions


def test_an_owner_gets_its_share_back_from_one_that_holds_more(narrow: Replica) -> None:
    for number in range(3):
        publish(narrow, f"wide-{number}", owner="bob")
    narrow.poll()
    assert len(in_memory(narrow, [f"wide-{number}" for number in range(3)])) == 3
    publish(narrow, "hers", owner="alice")
    narrow.poll()
    narrow.cache.load_heads("hers", 1)
    assert in_memory(narrow, ["hers"]) == ["hers"]
    assert len(narrow.metrics.evictions) == 1


def test_a_branch_takes_no_memory_and_reads_no_heads(narrow: Replica) -> None:
    source = publish(narrow, "m")
    narrow.poll()
    before = narrow.cache.bytes
    assert before == WIDE_BYTES
    for number in range(25):
        branch(narrow, source, f"branch-{number}")
    narrow.store.calls.clear()
    narrow.poll()
    names = [f"branch-{number}" for number in range(25)]
    assert in_memory(narrow, names) == names
    assert narrow.cache.bytes == before
    assert layout.blob(source.files[layout.HEADS].sha256) not in narrow.store.calls
    assert embed(narrow, "branch-7").status_code == 200


def test_a_version_above_the_whole_budget_is_refused_with_sizes(narrow: Replica) -> None:
    publish(narrow, "m")
    narrow.poll()
    size = publish(narrow, "m", 2, HUGE).files[layout.HEADS].bytes
    narrow.poll()
    refusal = narrow.live.refusal("m")
    assert refusal is not None
    assert refusal.kind == "too_large"
    for part in (f"{size / 2**20:.1f} MiB", "1.0 MiB", "max_heads_bytes"):
        assert part in refusal.reason
    assert embed(narrow, "m").headers["x-model-version"] == "1"


def test_a_replica_that_starts_with_more_models_than_fit_answers_for_all_of_them(
    narrow: Replica,
) -> None:
    models = [f"m{number}" for number in range(7)]
    for model in models:
        publish(narrow, model)
    narrow.poll()
    assert narrow.live.readiness.ready
    assert narrow.get("/readyz").status_code == 200
    assert len(in_memory(narrow, models)) == 3
    assert narrow.metrics.evictions == []
    for model in models:
        assert embed(narrow, model).headers["x-model-version"] == "1"
        assert narrow.cache.bytes <= BUDGET


def test_a_version_that_is_evicted_while_a_request_uses_it_answers_and_counts_until_then(
    narrow: Replica,
) -> None:
    for model in ("m", "other"):
        publish(narrow, model)
        narrow.cache.load(model, 1)
    used = asyncio.run(narrow.cache.find("m", 1))
    narrow.cache.retire("m", [1])
    assert narrow.cache.get("m", 1) is None
    assert narrow.cache.bytes == 2 * WIDE_BYTES
    assert used.source.load().serving["image"].weight_EF.shape == (128, 256)
    del used
    gc.collect()
    assert narrow.cache.bytes == WIDE_BYTES


def test_a_swap_without_room_for_both_is_verified_and_loads_on_demand(narrow: Replica) -> None:
    """The other owner holds less than half of the budget; both versions together exceed the rest."""
    hers = ModelSpec(width=128, modalities={"image": 200, "text": 200}, lift=0)
    his = ModelSpec(width=128, modalities={"image": 320, "text": 320}, lift=0)
    for number in range(2):
        publish(narrow, f"hers-{number}", spec=hers, owner="alice")
    narrow.poll()
    publish(narrow, "m", spec=his, owner="bob")
    narrow.poll()
    assert narrow.cache.get("m", 1)
    second = publish(narrow, "m", 2, spec=his, owner="bob")
    narrow.store.calls.clear()
    narrow.poll()
    assert narrow.live_number("m") == 2
    assert narrow.cache.get("m", 2) is None
    assert narrow.store.calls.count(layout.blob(second.files[layout.HEADS].sha256)) == 1
    assert narrow.cache.load_heads("m", 2)
    assert narrow.cache.bytes <= BUDGET
    assert narrow.metrics.evictions == ["m"]


def test_a_damaged_successor_is_refused_where_there_is_no_room_for_both(narrow: Replica) -> None:
    spec = ModelSpec(width=128, modalities={"image": 600, "text": 600}, lift=0)
    publish(narrow, "m", spec=spec)
    narrow.poll()
    publish(narrow, "m", 2, spec=spec)
    narrow.store.put(stored_key(narrow.store, "m", 2, layout.HEADS), b"rubbish")
    narrow.poll()
    refusal = narrow.live.refusal("m")
    assert refusal is not None
    assert refusal.kind == "damaged"
    assert embed(narrow, "m", spec).headers["x-model-version"] == "1"


def test_what_cannot_be_loaded_beside_other_owners_shares_is_503_with_sizes(
    narrow: Replica,
) -> None:
    hers = ModelSpec(width=128, modalities={"image": 400, "text": 400}, lift=0)
    his = ModelSpec(width=256, modalities={"image": 330, "text": 330}, lift=0)
    publish(narrow, "hers", spec=hers, owner="alice")
    narrow.poll()
    size = publish(narrow, "his", spec=his, owner="bob").files[layout.HEADS].bytes
    narrow.poll()
    answer = embed(narrow, "his", his)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "no_room"
    for part in (f"{size / 2**20:.1f} MiB", "1.0 MiB", "max_heads_bytes"):
        assert part in answer.json()["error"]["message"]
    assert embed(narrow, "hers", hers).status_code == 200
