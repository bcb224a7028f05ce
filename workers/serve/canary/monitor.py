"""The canary of each model in one replica: its requests are counted, the live version's are shadowed.

Shadowing: some requests of the live version are scored by the canary as well, after their response. No request
waits for it: one is scored at a time, only while no rows wait for the heads, and for at most a fifth of the time.
What does not fit into the queue is dropped and counted.

Shapes: B rows of a request, F width of the raw feature.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from cmcl.contract.policy import PairAgreement
from workers.serve.canary.agreement import RecentFeatures, VersionComparison
from workers.serve.canary.observations import (
    Canary,
    Observations,
    ObservationWriter,
    all_canaries,
    canary_of,
)
from workers.serve.compute import BACKGROUND, Compute
from workers.serve.errors import ApiError
from workers.serve.telemetry import ServeMetrics
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import Float32Array, ServedVersion
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

_MOST_WAITING = 64
# The agreement of a request's rows is that of its topic: a few say as much as all.
_ROWS_OF_A_REQUEST = 8
# After each request it pauses for four times as long as it took.
_REST = 4.0
_BUSY_SECONDS = 0.005

_WRITE_SECONDS = 3.0
_LAST_SECONDS = 5.0


@dataclass(frozen=True)
class _Request:
    canary: Canary
    version: ServedVersion
    features: Mapping[str, Float32Array]


class Shadow:
    """The queue, and the task that scores what is in it. Used from one event loop."""

    def __init__(
        self,
        compute: Compute,
        recent: RecentFeatures,
        observations: Observations,
        metrics: ServeMetrics,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        self._compute = compute
        self._recent = recent
        self._observations = observations
        self._metrics = metrics
        self._most_waiting = most_waiting
        self._waiting: deque[_Request] = deque()
        self._versions: dict[str, VersionComparison] = {}
        self._worker: asyncio.Task[None] | None = None

    def offer(
        self, canary: Canary, version: ServedVersion, features: Mapping[str, Float32Array]
    ) -> None:
        """Queue a request (B × F for each modality) that the live version has answered."""
        if len(self._waiting) >= self._most_waiting:
            self._metrics.shadow_dropped(canary.model)
            return
        self._observations.begin(canary)
        few = {modality: _some(rows_BF) for modality, rows_BF in features.items()}
        self._waiting.append(_Request(canary, version, few))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), name="shadow")

    def forget(self, model: str) -> None:
        """Release the versions of a canary that has ended."""
        self._versions.pop(model, None)
        self._metrics.canary_ended(model)

    async def drained(self) -> None:
        """Wait until everything in the queue has been scored."""
        if self._worker is not None:
            await self._worker

    async def close(self) -> None:
        """Drop the queue."""
        self._waiting.clear()
        await self.drained()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if self._compute.waiting_rows:
                await asyncio.sleep(_BUSY_SECONDS)
                continue
            began = loop.time()
            await self._score(self._waiting.popleft())
            await asyncio.sleep(_REST * (loop.time() - began))

    async def _score(self, request: _Request) -> None:
        canary, model = request.canary, request.canary.model
        versions = self._versions.get(model)
        if (
            versions is None
            or versions.live is not canary.live
            or versions.canary is not request.version
        ):
            versions = VersionComparison(canary.live, request.version, self._recent)
            self._versions[model] = versions
        try:
            agreements: dict[str, PairAgreement] = {}
            for modality, rows_BF in request.features.items():
                found = await self._compute.run(BACKGROUND, versions.score, modality, rows_BF)
                agreements |= {
                    pair: agreements.get(pair, PairAgreement()) + one for pair, one in found.items()
                }
        except Exception:
            # Of any kind: the live version has answered this request and the canary could not.
            if self._observations.failed(canary) == 1:
                logger.exception("%s fails where the live one answers", request.version.label)
        else:
            self._observations.scored(canary, agreements)


def _some(rows_BF: Float32Array) -> Float32Array:
    """A few rows, spread over the request; a copy, because a view would keep all of them in memory."""
    step = -(-len(rows_BF) // _ROWS_OF_A_REQUEST)
    return rows_BF[::step].copy()


class CanaryMonitor:
    """Counts the canary's requests, shadows the live version's, and writes its observations."""

    def __init__(
        self,
        live: LiveVersions,
        compute: Compute,
        metrics: ServeMetrics,
        store: ObjectStore,
        replica: str,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._live = live
        self._draw = draw
        self._recent = RecentFeatures()
        self._observations = Observations(metrics)
        self._shadow = Shadow(compute, self._recent, self._observations, metrics)
        self._writer = ObservationWriter(store, self._observations, replica)

    def answered(self, version: ServedVersion, features: Mapping[str, Float32Array]) -> None:
        """Note a request that this version has answered, with its features (B × F, by modality)."""
        for modality, rows_BF in features.items():
            self._recent.keep(version.model, modality, rows_BF)
        canary = canary_of(version.model, self._live)
        if canary is None or canary.loaded is None:
            return
        if version.number == canary.version:
            self._observations.begin(canary)
            self._observations.answered(canary)
        elif version == canary.live and self._draw() < canary.shadow:
            self._shadow.offer(canary, canary.loaded, features)

    def failed(self, version: ServedVersion) -> None:
        """Note a request that this version could not answer, through no fault of the client."""
        canary = canary_of(version.model, self._live)
        if canary is not None and version.number == canary.version:
            self._observations.begin(canary)
            self._observations.failed(canary)

    def counting_failures(self, version: ServedVersion) -> "_Blaming":
        """Context manager that counts exceptions as failures of this version, except errors of the client."""
        return _Blaming(self, version)

    @asynccontextmanager
    async def written(self, seconds: float = _WRITE_SECONDS) -> AsyncIterator[None]:
        """Write observations periodically while the block runs, and once more at its end."""
        over = asyncio.Event()
        writing = asyncio.create_task(self._write_until(over, seconds), name="observations")
        try:
            yield
        finally:
            # Not cancelled: a thread in the middle of a write would overwrite the last one.
            over.set()
            try:
                async with asyncio.timeout(_LAST_SECONDS):
                    await writing
                    await self.close()
            except TimeoutError:
                logger.warning("the store does not respond: the last observations are not written")

    async def _write_until(self, over: asyncio.Event, seconds: float) -> None:
        while not over.is_set():
            try:
                await self.write()
            except Exception:
                # A bug, but the control plane judges canaries by these observations: keep writing.
                logger.exception("observations of canaries were not written")
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await over.wait()

    async def write(self) -> None:
        """Write what has changed, and the final counts of canaries that have ended."""
        for model in self._observations.update(all_canaries(self._live)):
            self._shadow.forget(model)
        await self._writer.write()

    async def close(self) -> None:
        """Stop scoring, and write what was observed."""
        await self._shadow.close()
        await self.write()


class _Blaming:
    """A class and not a generator, because every request passes here."""

    def __init__(self, canaries: CanaryMonitor, version: ServedVersion) -> None:
        self._canaries = canaries
        self._version = version

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception) and not issubclass(kind, ApiError):
            self._canaries.failed(self._version)
