"""Rows of several requests and versions share products, and each gets its own embeddings."""

import asyncio
import dataclasses
import threading
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.fakes.executor import EndingThreads
from tests.fakes.serve_metrics import RecordedMetrics
from tests.unit.serve.conftest import SPEC, Clock, Replica
from tests.unit.serve.served_versions import load_version
from workers.serve.api.app import create_api
from workers.serve.app import Embedder
from workers.serve.background import BackgroundExecutor
from workers.serve.batcher import Batcher, PendingRows, RowQueue, Ticket
from workers.serve.errors import DeadlineExceeded
from workers.serve.versions.loading import Float32Array, ServedVersion


@pytest.fixture
def versions(replica: Replica) -> list[ServedVersion]:
    for number in (1, 2):
        replica.publish(number)
    return [load_version(replica.store, "scenes", number) for number in (1, 2)]


def rows(count: int, seed: int, width: int = 5) -> Float32Array:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, width)).astype(np.float32)


def expected(version: ServedVersion, modality: str, rows_BF: Float32Array) -> Float32Array:
    vectors: Float32Array = version.heads.embed(modality, torch.from_numpy(rows_BF)).numpy()
    return vectors


@pytest.mark.parametrize("count", [1, 7, 40, 3000])
def test_requests_of_several_versions_and_modalities_get_their_own(
    versions: list[ServedVersion], count: int
) -> None:
    metrics = RecordedMetrics()
    asked = [
        (version, modality, rows(count, seed, SPEC.widths[modality]))
        for version in versions
        for seed, modality in enumerate(("image", "text", "image"))
    ]

    async def ask_at_once() -> list[Float32Array]:
        batcher = Batcher(metrics)
        return await asyncio.gather(*(batcher.embed(*each) for each in asked))

    for (version, modality, rows_BF), got in zip(asked, asyncio.run(ask_at_once()), strict=True):
        np.testing.assert_allclose(got, expected(version, modality, rows_BF), atol=1e-5)
    assert sum(rows for _, rows in metrics.batches) == 6 * count
    if count == 1:
        assert metrics.batches == [(6, 6)]


def test_abandoned_rows_are_not_multiplied(versions: list[ServedVersion]) -> None:
    metrics = RecordedMetrics()

    async def hang_up_while_waiting() -> None:
        batcher = Batcher(metrics)
        waiting = asyncio.ensure_future(batcher.embed(versions[0], "image", rows(9, 0)))
        await asyncio.sleep(0)
        waiting.cancel()
        await batcher.embed(versions[0], "image", rows(1, 1))

    asyncio.run(hang_up_while_waiting())
    assert metrics.batches == [(1, 1)]


def test_rows_that_waited_for_too_long_are_refused(versions: list[ServedVersion]) -> None:
    async def ask_too_late() -> None:
        late = Ticket("a", asyncio.get_running_loop().time() - 1)
        await Batcher(RecordedMetrics()).embed(versions[0], "image", rows(1, 0), ticket=late)

    with pytest.raises(DeadlineExceeded):
        asyncio.run(ask_too_late())


def test_a_small_request_waits_for_few_rows_of_an_owner_with_many(
    versions: list[ServedVersion],
) -> None:
    metrics = RecordedMetrics()
    large = [rows(4096, seed) for seed in range(4)]

    async def ask_much_and_little() -> tuple[list[Float32Array], int]:
        batcher = Batcher(metrics)
        greedy = [
            asyncio.ensure_future(
                batcher.embed(versions[0], "image", each, ticket=Ticket("greedy"))
            )
            for each in large
        ]
        while not metrics.batches:
            await asyncio.sleep(0)
        await batcher.embed(versions[0], "image", rows(1, 9), ticket=Ticket("modest"))
        before = sum(count for _, count in metrics.batches)
        return await asyncio.gather(*greedy), before

    found, before = asyncio.run(ask_much_and_little())
    assert before <= 2 * 512, "the product under way, and the one that it shares"
    for rows_BF, got in zip(large, found, strict=True):
        np.testing.assert_allclose(got, expected(versions[0], "image", rows_BF), atol=1e-5)


def test_waiting_owners_get_equally_many_rows(versions: list[ServedVersion]) -> None:
    """Independent of the size of their requests."""
    heads = versions[0].source.in_memory
    assert heads is not None

    async def take() -> Counter[str]:
        queue, loop = RowQueue(), asyncio.get_running_loop()
        for owner, requests, count in (("a", 2, 4096), ("b", 300, 10), ("c", 1, 5000)):
            for seed in range(requests):
                queue.add(
                    PendingRows(
                        heads,
                        "image",
                        rows(count, seed),
                        True,
                        Ticket(owner),
                        loop.create_future(),
                    )
                )
        found: Counter[str] = Counter()
        for _ in range(15):
            for each in queue.take(500):
                found[each.work.ticket.owner] += each.stop - each.start
        return found

    found = asyncio.run(take())
    assert found.total() == 15 * 500
    assert all(abs(count - 2500) <= 64 for count in found.values())


def test_a_thread_that_is_stuck_is_detected() -> None:
    release = threading.Event()

    async def ask_while_stuck() -> tuple[bool, bool]:
        batcher = Batcher(RecordedMetrics())
        before = await batcher.responds(5)
        batcher._products.submit(release.wait)
        stuck = await batcher.responds(0.05)
        release.set()
        return before, stuck

    assert asyncio.run(ask_while_stuck()) == (True, False)


def test_heavy_work_that_does_not_end_is_detected_and_what_waits_behind_it_is_not() -> None:
    release, clock = threading.Event(), Clock()
    heavy = BackgroundExecutor(EndingThreads(clock))

    async def get_stuck() -> list[float]:
        idle = heavy.busy_seconds
        stuck = asyncio.ensure_future(heavy.run("a", release.wait))
        behind = [asyncio.ensure_future(heavy.run("a", lambda: None)) for _ in range(3)]
        while not heavy._began:
            await asyncio.sleep(0.001)
        clock.now = 500.0
        busy = heavy.busy_seconds
        release.set()
        await asyncio.gather(stuck, *behind)
        return [idle, busy, heavy.busy_seconds]

    assert asyncio.run(get_stuck()) == [0.0, 500.0, 0.0]


def test_owners_take_turns_at_heavy_work() -> None:
    """An owner with much work does not delay others, and abandoned work is skipped."""
    release, done, heavy = threading.Event(), list[str](), BackgroundExecutor()

    async def ask(key: str) -> None:
        await heavy.run(key, lambda: done.append(key))

    async def ask_much_and_little() -> None:
        first = asyncio.ensure_future(heavy.run("greedy", release.wait))
        greedy = [asyncio.ensure_future(ask("greedy")) for _ in range(4)]
        modest = asyncio.ensure_future(ask("modest"))
        await asyncio.sleep(0)
        greedy.pop(0).cancel()
        release.set()
        await asyncio.gather(first, modest, *greedy)

    asyncio.run(ask_much_and_little())
    assert done == ["modest", "greedy", "greedy", "greedy"]


class BusyExecutor(BackgroundExecutor):
    """Reports that its present work has taken `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    @property
    def busy_seconds(self) -> float:
        return self.seconds


@pytest.mark.parametrize(("seconds", "status"), [(0.0, 200), (60.0, 200), (121.0, 503)])
def test_a_stuck_search_is_seen_by_the_health_of_a_replica(
    serving: Replica, seconds: float, status: int
) -> None:
    parts = dataclasses.replace(serving.parts(serving.args), background=BusyExecutor(seconds))
    serving.app = create_api(parts)
    answer = serving.get("/healthz")
    assert answer.status_code == status
    assert status == 200 or "busy with the same work for 121 s" in answer.text


def test_a_product_that_fails_fails_its_requests_alone(versions: list[ServedVersion]) -> None:
    async def ask_with_a_wrong_width() -> Sequence[object]:
        batcher = Batcher(RecordedMetrics())
        return await asyncio.gather(
            batcher.embed(versions[0], "image", rows(1, 0, width=4)),
            batcher.embed(versions[0], "text", rows(1, 0, width=4)),
            return_exceptions=True,
        )

    failed, good = asyncio.run(ask_with_a_wrong_width())
    assert isinstance(failed, ValueError | RuntimeError)
    assert isinstance(good, np.ndarray)


def test_a_queue_that_fails_fails_its_requests_and_answers_the_next(
    versions: list[ServedVersion],
) -> None:
    async def ask_with_a_broken_count() -> tuple[Sequence[object], Float32Array]:
        batcher = Batcher(RecordedMetrics())
        batcher._queue.rows = -1000
        # The first product has all rows of the first one, some of the second, and none of the third.
        failed = await asyncio.gather(
            *(batcher.embed(versions[0], "image", rows(count, 0)) for count in (1, 600, 1)),
            return_exceptions=True,
        )
        good = await batcher.embed(versions[0], "image", rows(1, 0))
        assert batcher.waiting_rows == 0
        return failed, good

    failed, good = asyncio.run(asyncio.wait_for(ask_with_a_broken_count(), 20))
    assert [type(each) for each in failed] == [AssertionError] * 3
    np.testing.assert_allclose(good, expected(versions[0], "image", rows(1, 0)), atol=1e-5)


@pytest.mark.parametrize(
    ("part", "title"),
    [
        ("_follower", "the follower of the live pointers"),
        ("_collections", "the follower of the collections"),
        ("_listener", "the listener for announcements"),
        ("_exporter", "the export of metrics"),
    ],
)
def test_a_thread_that_ended_fails_the_health_of_its_replica(part: str, title: str) -> None:
    replica = Embedder.__new__(Embedder)
    replica._batcher = Batcher(RecordedMetrics())
    replica._background = replica._searches = BackgroundExecutor()
    for each in ("_follower", "_collections", "_listener", "_exporter"):
        thread = SimpleNamespace(
            alive=each != part, is_alive=lambda is_alive=each != part: is_alive
        )
        setattr(replica, each, thread)
    replica._collections = SimpleNamespace(follower=replica._collections)  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match=f"^{title} ended in this replica$"):
        asyncio.run(replica.check_health())
