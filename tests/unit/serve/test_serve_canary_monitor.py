"""Counts of a canary in a replica: requests, shadowed requests, written observations."""

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.policy import Canary, Observation
from cmcl.contract.version import LivePointer
from tests.fakes.compute import ImmediateCompute
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.serve_metrics import RecordedMetrics
from tests.fakes.versions import random_heads
from tests.unit.serve.background import finished
from tests.unit.serve.served_versions import SPEC, rows, version
from workers.serve.canary.monitor import CanaryMonitor
from workers.serve.errors import InvalidRequest
from workers.serve.versions.live import LiveVersions, Refusal
from workers.serve.versions.loading import ServedVersion
from workers.storage import layout
from workers.storage.local import LocalStore

LIVE, CANARY = version(1), version(2)


class Watched:
    """A `CanaryMonitor` with its surroundings."""

    def __init__(self, store: FlakyStore) -> None:
        self.store = store
        self.live = LiveVersions()
        self.revision = 0
        self.compute = ImmediateCompute()
        self.metrics = RecordedMetrics()
        self.draws: list[float] = []
        self.canaries = CanaryMonitor(
            self.live, self.compute, self.metrics, store, "replica-1", self._draw
        )
        self.live.swap("m", self.point(), LIVE)

    def _draw(self) -> float:
        return self.draws.pop(0) if self.draws else 0.0

    def remember_texts(self, count: int = 40) -> None:
        """Remember texts, as requests before the canary would have."""
        for seed in range(count):
            self.canaries.answered(LIVE, {"text": rows("text", 1, seed)})

    def point(self, canary: Canary | None = None) -> LivePointer:
        """Point at version 1 and at that canary."""
        self.revision += 1
        pointer = LivePointer(generation=1, version=1, revision=self.revision, canary=canary)
        self.live.update("m", pointer)
        return pointer

    def try_out(
        self, canary: ServedVersion | None, shadow: float = 1, revision: int = 7
    ) -> LivePointer:
        """Start a canary of version 2, or change it; None: it is not loaded yet."""
        pointer = self.point(Canary(version=2, revision=revision, shadow=shadow))
        if canary is not None:
            assert self.live.start_canary("m", canary)
        return pointer

    def document(self, revision: int = 7) -> Observation:
        key = layout.observation("m", revision, "replica-1")
        return Observation.model_validate_json(self.store.read(key))


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(FlakyStore(LocalStore(tmp_path / "store")))


def run(what: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(what, 60))


def test_a_shadowed_request_is_scored_and_written(watched: Watched) -> None:
    async def use() -> None:
        watched.remember_texts()
        watched.try_out(CANARY)
        watched.canaries.answered(LIVE, {"image": rows("image", 2)})
        watched.canaries.answered(LIVE, {"image": rows("image", 1), "text": rows("text", 1)})
        await finished("shadow")
        await watched.canaries.write()

    run(use())
    document = watched.document()
    assert (document.revision, document.version, document.replica) == (7, 2, "replica-1")
    assert (document.answered, document.failed, document.shadowed) == (0, 0, 2)
    assert document.pairs["image--text"].queries == 3
    assert -3 <= document.pairs["image--text"].cosine_sum < 3
    model, pair, cosine, overlap = watched.metrics.agreements[-1]
    assert (model, pair) == ("m", "image--text")
    assert cosine == pytest.approx(document.pairs["image--text"].cosine_sum / 3)
    assert overlap == pytest.approx(document.pairs["image--text"].overlap_sum / 3)


def test_exactly_the_sampled_share_is_shadowed(watched: Watched) -> None:
    async def use() -> None:
        watched.remember_texts()
        watched.try_out(CANARY, shadow=0.5)
        watched.draws = [0.49, 0.5, 0.9, 0.1]
        for seed in range(4):
            watched.canaries.answered(LIVE, {"image": rows("image", 1, seed)})
        await finished("shadow")
        await watched.canaries.write()

    run(use())
    assert watched.document().shadowed == 2


def test_the_canarys_own_requests_are_counted_and_not_shadowed(watched: Watched) -> None:
    async def use() -> None:
        watched.remember_texts()
        watched.try_out(CANARY)
        watched.canaries.answered(CANARY, {"image": rows("image", 1)})
        watched.canaries.answered(CANARY, {"image": rows("image", 1)})
        watched.canaries.failed(CANARY)
        watched.canaries.failed(LIVE)
        await finished("shadow")
        await watched.canaries.write()

    run(use())
    document = watched.document()
    assert (document.answered, document.failed, document.shadowed) == (2, 1, 0)
    assert watched.compute.runs == []


def test_a_request_for_another_version_is_not_counted_for_the_canary(watched: Watched) -> None:
    async def use() -> None:
        watched.remember_texts()
        watched.try_out(CANARY)
        watched.canaries.answered(version(3), {"image": rows("image", 1)})
        await finished("shadow")
        await watched.canaries.write()

    run(use())
    assert watched.compute.runs == []
    assert watched.document().shadowed == 0


def test_nothing_is_scored_while_rows_wait(watched: Watched) -> None:
    async def use() -> None:
        watched.remember_texts()
        watched.try_out(CANARY)
        watched.compute.waiting_rows = 3
        watched.canaries.answered(LIVE, {"image": rows("image", 1)})
        await asyncio.sleep(0.03)
        assert watched.compute.runs == []
        watched.compute.waiting_rows = 0
        await finished("shadow")
        assert watched.compute.runs == ["score"]

    run(use())


def test_what_does_not_fit_is_dropped_and_counted(watched: Watched) -> None:
    async def use() -> None:
        watched.remember_texts()
        watched.try_out(CANARY)
        for seed in range(70):
            watched.canaries.answered(LIVE, {"image": rows("image", 1, seed)})
        await finished("shadow")
        await watched.canaries.write()

    run(use())
    assert watched.metrics.dropped == ["m"] * 6
    assert watched.document().shadowed == 64


def test_a_canary_that_fails_is_counted_and_logged_once(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    heads = random_heads(SPEC, 2)
    broken = version(2, heads=heads.replaced({"image": heads.weights["image"] * float("nan")}))

    async def use() -> None:
        watched.remember_texts()
        watched.try_out(broken)
        for seed in range(3):
            watched.canaries.answered(LIVE, {"image": rows("image", 1, seed)})
        await finished("shadow")
        await watched.canaries.write()

    run(use())
    document = watched.document()
    assert (document.failed, document.shadowed, document.pairs) == (3, 0, {})
    assert [each.getMessage() for each in caplog.records] == [
        "m@2 fails where the live one answers"
    ]


def test_a_rejected_canary_is_reported(watched: Watched) -> None:
    async def use() -> None:
        pointer = watched.try_out(None)
        watched.canaries.answered(LIVE, {"image": rows("image", 1)})
        await watched.canaries.write()
        assert watched.document().refused is None
        refusal = Refusal(2, pointer.order, "damaged", "digest", failures=1, retry_at=0)
        assert watched.live.refuse("m", refusal)
        await watched.canaries.write()

    run(use())
    assert watched.document().refused == "digest"


def test_only_what_has_changed_is_written_again(watched: Watched) -> None:
    async def use() -> None:
        watched.try_out(CANARY)
        await watched.canaries.write()
        first = watched.document().at
        await watched.canaries.write()
        assert watched.document().at == first
        watched.canaries.answered(CANARY, {"image": rows("image", 1)})
        await watched.canaries.write()
        assert watched.document().at > first

    run(use())


def test_an_unavailable_store_costs_freshness_alone(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    async def use() -> None:
        watched.try_out(CANARY)
        watched.store.broken = "observations"
        for _ in range(3):
            watched.canaries.answered(CANARY, {"image": rows("image", 1)})
            await watched.canaries.write()
        watched.point()
        await watched.canaries.write()
        watched.store.broken = None
        await watched.canaries.write()

    run(use())
    assert watched.document().answered == 3
    assert len(caplog.records) == 1


def test_the_last_observation_is_kept_after_a_canary(watched: Watched) -> None:
    """A request that was still waiting when the canary ended must not restart the counts."""

    async def use() -> None:
        watched.remember_texts()
        watched.try_out(CANARY)
        watched.canaries.answered(CANARY, {"image": rows("image", 1)})
        await watched.canaries.write()
        watched.canaries.answered(LIVE, {"image": rows("image", 1)})
        watched.point()
        await watched.canaries.write()
        await finished("shadow")
        await watched.canaries.write()

    run(use())
    document = watched.document()
    assert (document.answered, document.shadowed) == (1, 0)


def test_a_restarted_canary_counts_from_zero(watched: Watched) -> None:
    async def use() -> None:
        watched.try_out(CANARY)
        watched.canaries.answered(CANARY, {"image": rows("image", 1)})
        await watched.canaries.write()
        watched.try_out(CANARY, revision=9)
        watched.canaries.answered(CANARY, {"image": rows("image", 1)})
        await watched.canaries.close()

    run(use())
    assert (watched.document(7).answered, watched.document(9).answered) == (1, 1)


def test_closing_writes_the_observations_and_stops_scoring(watched: Watched) -> None:
    async def use() -> None:
        watched.remember_texts()
        watched.try_out(CANARY)
        watched.compute.waiting_rows = 1
        watched.canaries.answered(LIVE, {"image": rows("image", 1)})
        watched.canaries.answered(CANARY, {"image": rows("image", 1)})
        closing = asyncio.create_task(watched.canaries.close())
        await asyncio.sleep(0.01)
        watched.compute.waiting_rows = 0
        await closing

    run(use())
    assert (watched.document().answered, watched.document().shadowed) == (1, 0)
    assert watched.document().at < datetime.now(UTC)


def test_what_breaks_is_the_canarys_fault_and_what_the_client_did_is_not(
    watched: Watched,
) -> None:
    async def use() -> None:
        watched.try_out(CANARY)
        with pytest.raises(RuntimeError), watched.canaries.counting_failures(CANARY):
            raise RuntimeError("no memory")
        with pytest.raises(InvalidRequest), watched.canaries.counting_failures(CANARY):
            raise InvalidRequest("a wrong row")
        with pytest.raises(RuntimeError), watched.canaries.counting_failures(LIVE):
            raise RuntimeError("no memory")
        await watched.canaries.write()

    run(use())
    assert watched.document().failed == 1


def test_what_was_seen_is_written_from_time_to_time_and_at_the_end(watched: Watched) -> None:
    async def use() -> None:
        watched.try_out(CANARY)
        async with watched.canaries.written(seconds=0.001):
            watched.canaries.answered(CANARY, {"image": rows("image", 1)})
            while not watched.store.calls:
                await asyncio.sleep(0.001)
            watched.canaries.answered(CANARY, {"image": rows("image", 1)})

    run(use())
    assert watched.document().answered == 2
