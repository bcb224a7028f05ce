"""Which versions are in memory, and which are evicted."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from cmcl.contract.version import LivePointer, VersionManifest
from cmcl.storage import layout
from tests.fakes.versions import publish_version, random_heads, store_version
from tests.unit.serve.conftest import MODEL, SPEC, Replica
from tests.unit.serve.served_versions import version
from workers.serve.errors import Overloaded
from workers.serve.versions.cache import KEPT_FOR_ROLLING_BACK, VersionCache
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import (
    Reservation,
    ServedVersion,
    SharedTensor,
    StoredVersions,
    TensorPool,
)

TIMEOUT = 60.0
BUDGET = 1 << 30


class HeldLoads(StoredVersions):
    """Loads that do not end until they are released."""

    def __init__(self, replica: Replica) -> None:
        super().__init__(replica.store)
        self.begun: list[int] = []
        self.go_on = threading.Event()

    def manifest(self, model: str, number: int) -> VersionManifest:
        self.begun.append(number)
        assert self.go_on.wait(TIMEOUT)
        return super().manifest(model, number)


async def until_begun(loads: HeldLoads, count: int) -> None:
    async with asyncio.timeout(TIMEOUT):
        while len(loads.begun) < count:
            await asyncio.sleep(0.005)


def asked_for(cache: VersionCache, number: int) -> asyncio.Task[ServedVersion]:
    return asyncio.create_task(cache.find(MODEL, number))


def publish_up_to(replica: Replica, last: int) -> None:
    """Publish versions in turn; the last one is live."""
    for number in range(2, last + 1):
        replica.publish(number)
        replica.poll()


def in_memory(replica: Replica, up_to: int = 9) -> list[int]:
    return [number for number in range(1, up_to) if replica.cache.get(MODEL, number)]


@pytest.mark.parametrize("back", range(1, KEPT_FOR_ROLLING_BACK + 1))
def test_rolling_back_reads_the_pointer_and_nothing_else(serving: Replica, back: int) -> None:
    publish_up_to(serving, 6)
    serving.point(generation=7, version=6 - back)
    serving.store.calls.clear()
    serving.poll()
    assert sorted(serving.store.calls) == ["models/", "models/scenes/live.json"]
    assert serving.embed().headers["x-model-version"] == str(6 - back)


def test_the_last_four_and_the_live_one_stay_in_memory(serving: Replica) -> None:
    publish_up_to(serving, 7)
    assert in_memory(serving) == [3, 4, 5, 6, 7]


def test_heads_that_a_dataset_did_not_touch_are_held_once(serving: Replica) -> None:
    first = serving.cache.get(MODEL, 1)
    assert first is not None
    changed = first.heads.replaced({"text": first.heads.weights["text"] + 1})
    publish_version(serving.store, MODEL, 2, SPEC, changed, 2)
    serving.poll()
    second = serving.cache.get(MODEL, 2)
    assert second is not None
    assert second.heads.weights["image"] is first.heads.weights["image"]
    assert torch.equal(second.heads.weights["text"], changed.weights["text"])
    # What answers is a view of what is held.
    of_both = [each.source.load().serving["image"].weight_EF.data_ptr() for each in (first, second)]
    assert of_both[0] == of_both[1]


def test_a_version_rolled_back_to_counts_as_the_latest(serving: Replica) -> None:
    publish_up_to(serving, 5)
    serving.point(generation=6, version=1)
    serving.poll()
    serving.publish(version=6, generation=7)
    serving.poll()
    assert in_memory(serving) == [1, 3, 4, 5, 6]


def test_retired_versions_leave_memory_and_are_not_loaded_again(serving: Replica) -> None:
    publish_up_to(serving, 4)
    serving.point(generation=5, version=4, retired=[2, 3])
    serving.poll()
    assert in_memory(serving) == [1, 4]
    serving.store.calls.clear()
    response = serving.embed(model="scenes@3")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "version_retired")
    assert serving.store.calls == []


def test_a_swap_reads_no_file_that_is_in_memory(serving: Replica) -> None:
    """Lifts and conditioning are half of a version or more, and successive versions share them."""
    serving.publish(version=2)
    manifest = serving.stored.manifest(MODEL, 2)
    files = {name: layout.blob(entry.sha256) for name, entry in manifest.files.items()}
    serving.store.calls.clear()
    serving.poll()
    assert serving.live_number() == 2
    assert files[layout.HEADS] in serving.store.calls
    assert files[layout.INPUTS] not in serving.store.calls


def test_a_named_version_that_goes_live_is_not_loaded_again(serving: Replica) -> None:
    store_version(serving.store, MODEL, 2, SPEC, random_heads(SPEC, seed=2))
    assert serving.embed(model="scenes@2").status_code == 200
    serving.point(generation=2, version=2)
    serving.store.calls.clear()
    serving.poll()
    assert not any("versions/" in call for call in serving.store.calls)
    assert in_memory(serving) == [1, 2]


def test_a_model_that_is_created_again_does_not_get_the_load_of_the_deleted_one(
    serving: Replica,
) -> None:
    loads = HeldLoads(serving)
    cache = VersionCache(loads, 2, BUDGET, serving.metrics)

    async def ask_delete_and_ask() -> None:
        of_old = asked_for(cache, 2)
        await until_begun(loads, 1)
        cache.forget(MODEL)
        of_new = asked_for(cache, 2)
        await until_begun(loads, 2)
        loads.go_on.set()
        await asyncio.gather(of_old, of_new)

    run_with_stored(serving, 2, ask_delete_and_ask())
    assert loads.begun == [2, 2]


def test_the_load_of_a_deleted_model_does_not_go_live_under_its_name() -> None:
    """Its pointer is later than that of the new model, which would then never be due."""
    live, old, new = LiveVersions(), pointer(generation=5), pointer(generation=1)
    live.update("m", old)
    live.forget("m")
    live.update("m", new)
    assert not live.swap("m", old, version(1))
    assert live.swap("m", new, version(1))


def test_a_version_that_has_unlearned_the_newest_dataset_goes_live(serving: Replica) -> None:
    manifest = store_version(serving.store, MODEL, 2, SPEC, random_heads(SPEC, seed=2))
    left = tuple(line.model_copy(update={"version": 1}) for line in manifest.learned)
    data = manifest.model_copy(update={"learned": left}).model_dump_json().encode()
    serving.store.put(layout.version_manifest(MODEL, 2), data)
    serving.point(generation=2, version=2)
    serving.poll()
    assert serving.live_number() == 2


def pointer(generation: int) -> LivePointer:
    return LivePointer(generation=generation, version=1)


class ReadingMeanwhile(set[Reservation]):
    """Reservations, one of whose tensors is read in another thread at the moment at which they are added up."""

    def __init__(self, pool: TensorPool, reservation: Reservation) -> None:
        super().__init__({reservation})
        self._read = partial(pool.share, torch.ones(reservation.left // 4), reservation)
        self.kept: list[SharedTensor] = []

    def __iter__(self) -> Iterator[Reservation]:
        self.kept.append(self._read())
        return super().__iter__()


def test_what_is_read_meanwhile_counts_against_the_budget(serving: Replica) -> None:
    before = serving.cache.bytes
    pool, reservation = serving.cache._stored.pool, Reservation(None, 400)
    serving.cache._reservations = ReadingMeanwhile(pool, reservation)
    assert serving.cache.bytes == before + 400


def run_with_stored(replica: Replica, last: int, use: Coroutine[Any, Any, None]) -> None:
    """Run with versions 2 to `last` in the store, none of them live."""
    for number in range(2, last + 1):
        store_version(replica.store, MODEL, number, SPEC, random_heads(SPEC, seed=number))
    asyncio.run(use)


def test_as_many_named_versions_load_at_once_as_are_kept(serving: Replica) -> None:
    loads = HeldLoads(serving)
    cache = VersionCache(loads, 3, BUDGET, serving.metrics)

    async def ask_for_many() -> None:
        first = [asked_for(cache, number) for number in (2, 3, 4)]
        await until_begun(loads, 2)
        shared = asked_for(cache, 4)
        with pytest.raises(Overloaded, match=r"^scenes@5 is not .* 3 versions .* permitted are 3"):
            await cache.find(MODEL, 5)
        loads.go_on.set()
        assert [each.number for each in await asyncio.gather(*first, shared)] == [2, 3, 4, 4]
        assert (await cache.find(MODEL, 5)).number == 5

    run_with_stored(serving, 5, ask_for_many())
    assert sorted(loads.begun) == [2, 3, 4, 5]


def test_loads_beyond_the_limit_are_429_with_retry_after(serving: Replica) -> None:
    loads = HeldLoads(serving)
    serving.cache = VersionCache(loads, 1, BUDGET, serving.metrics)
    serving.app = serving.app_of(serving.args)

    async def ask() -> None:
        waiting = asked_for(serving.cache, 2)
        await until_begun(loads, 1)
        refused = await asyncio.to_thread(serving.embed, model="scenes@3")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["code"] == "too_many_loads"
        loads.go_on.set()
        await waiting

    run_with_stored(serving, 3, ask())


def test_a_swap_does_not_wait_for_the_versions_that_requests_name(serving: Replica) -> None:
    loads = HeldLoads(serving)
    cache = VersionCache(loads, 4, BUDGET, serving.metrics)

    async def ask_and_swap() -> None:
        # Two threads load what requests name, so the third only waits for its turn.
        asked = [asked_for(cache, number) for number in (2, 3, 4)]
        await until_begun(loads, 2)
        swapped = asyncio.create_task(asyncio.to_thread(cache.load, MODEL, 4))
        await until_begun(loads, 3)
        assert set(loads.begun[:2]) == {2, 3}
        assert loads.begun[2] == 4
        loads.go_on.set()
        versions = await asyncio.gather(*asked)
        assert versions[2] == await swapped

    run_with_stored(serving, 4, ask_and_swap())
    assert set(loads.begun) == {2, 3, 4}
