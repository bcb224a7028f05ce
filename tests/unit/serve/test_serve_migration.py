"""Maps and comparisons between two versions: computed once, and never on the event loop."""

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cmcl.storage.local import LocalStore
from cmcl.storage.versions import read_version
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.versions import random_heads, store_version
from tests.unit.serve.served_versions import load_version
from tests.unit.serve.test_serve_migrate_route import SPEC, heads
from workers.nullspace.certificate import PairWeights, stored_change
from workers.serve.api.migrate import Changes, Compatibilities
from workers.serve.background import AsyncLRUCache, BackgroundExecutor
from workers.serve.versions.loading import LoadedHeads, ServedVersion
from workers.train.versions import read_memory


@pytest.fixture
def store(tmp_path: Path) -> FlakyStore:
    store = FlakyStore(LocalStore(tmp_path / "store"))
    for version in (1, 2):
        store_version(store, "m", version, SPEC, heads(version))
    store_version(store, "m", 3, SPEC, heads(3, first_dataset=1))
    return store


async def finished() -> None:
    """Wait until nothing is being compared."""
    while tasks := [task for task in asyncio.all_tasks() if task.get_name().startswith("load ")]:
        await asyncio.wait(tasks)


def compared(store: FlakyStore, old: ServedVersion, new: ServedVersion) -> list[Changes | None]:
    """The result for the first request, and for the next one."""

    async def ask() -> list[Changes | None]:
        found = Compatibilities(store, BackgroundExecutor())
        first = found.known(old, new)
        await finished()
        return [first, found.known(old, new)]

    return asyncio.run(ask())


def test_the_change_of_scores_is_cached_for_the_next_request(store: FlakyStore) -> None:
    old, new = (load_version(store, "m", number) for number in (1, 2))
    first, then = compared(store, old, new)
    memory = read_memory(store, read_version(store, "m", 1))
    weights = [
        PairWeights(each.heads.weights["image"], each.heads.weights["text"]) for each in (old, new)
    ]
    worst = stored_change(memory.by_pair["image", "text"], *weights)
    assert first is None
    assert then is not None
    assert dict(then) == {"image--text": pytest.approx(worst)}
    assert worst > 0.1


def test_what_could_not_be_read_is_tried_again(store: FlakyStore) -> None:
    old, new = (load_version(store, "m", number) for number in (1, 2))

    async def ask() -> Changes | None:
        found = Compatibilities(store, BackgroundExecutor())
        store.broken = "blobs/"
        assert found.known(old, new) is None
        await finished()
        store.broken = None
        assert found.known(old, new) is None
        await finished()
        return found.known(old, new)

    assert asyncio.run(ask())


def test_moments_of_another_version_of_that_name_are_not_used(store: FlakyStore) -> None:
    old, new = (load_version(store, "m", number) for number in (1, 2))
    before = ServedVersion(
        "m",
        1,
        SPEC,
        LoadedHeads(random_heads(SPEC, 5)),
        old.created_at.replace(year=2020),
        old.pairs,
    )
    assert compared(store, before, new) == [None, None]


def test_results_are_computed_once_and_the_oldest_are_evicted() -> None:
    searched: list[int] = []

    async def find_out(key: int) -> int:
        searched.append(key)
        await asyncio.sleep(0)
        return key * 10

    async def use() -> None:
        results: AsyncLRUCache[int, int] = AsyncLRUCache(most=2)
        got = await asyncio.gather(*(results.get(1, lambda: find_out(1)) for _ in range(3)))
        assert got == [10, 10, 10]
        await results.get(2, lambda: find_out(2))
        await results.get(1, lambda: find_out(1))
        await results.get(3, lambda: find_out(3))
        for key, result in ((1, 10), (3, 30), (2, 20)):
            assert await results.get(key, partial(find_out, key)) == result

    asyncio.run(use())
    assert searched == [1, 2, 3, 2]


def test_a_client_that_hangs_up_does_not_end_the_search() -> None:
    async def use() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def find_out() -> int:
            begun.set()
            await go_on.wait()
            return 5

        results: AsyncLRUCache[str, int] = AsyncLRUCache(most=2)
        cancelled = asyncio.create_task(results.get("key", find_out))
        await begun.wait()
        waiting = asyncio.create_task(results.get("key", find_out))
        cancelled.cancel()
        await asyncio.sleep(0)
        go_on.set()
        assert await waiting == 5

    asyncio.run(use())


def test_no_more_loads_begin_unasked_than_are_kept() -> None:
    begun: list[int] = []

    async def search(key: int) -> int:
        begun.append(key)
        await asyncio.sleep(0.01)
        return key

    async def use() -> None:
        results: AsyncLRUCache[int, int] = AsyncLRUCache(most=2)
        for _ in range(3):
            assert [results.peek(key, partial(search, key)) for key in range(9)] == [None] * 9
            await asyncio.sleep(0)
        assert len(begun) <= 4
        await finished()
        assert sum(results.peek(key, partial(search, key)) is not None for key in range(9)) == 2
        await finished()

    asyncio.run(use())


def test_a_comparison_that_fails_by_a_bug_is_logged(
    store: FlakyStore, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = (load_version(store, "m", number) for number in (1, 2))

    class Broken:
        in_memory = None

        def load(self) -> LoadedHeads:
            raise ZeroDivisionError("a bug")

    assert compared(store, old, replace(new, source=Broken())) == [None, None]
    assert "ZeroDivisionError: a bug" in caplog.text
