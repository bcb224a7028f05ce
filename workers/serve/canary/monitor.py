"""The canary of each model in one replica: its requests are counted, the live version's are shadowed.

Shapes: B rows of a request, F width of the raw feature.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from workers.serve.batching.compute import Compute
from workers.serve.canary.agreement import RecentFeatures
from workers.serve.canary.observations import (
    Observations,
    ObservationWriter,
    all_canaries,
    canary_of,
)
from workers.serve.canary.shadow import Shadow
from workers.serve.errors import ApiError
from workers.serve.metrics import ServeMetrics
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import Float32Array, ServedVersion
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

_WRITE_SECONDS = 3.0
_LAST_SECONDS = 5.0


class CanaryMonitor:
    """Counts the candidate's requests, shadows the live version's, and writes its observations."""

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
        if canary is None or canary.candidate is None:
            return
        if version.number == canary.version:
            self._observations.begin(canary)
            self._observations.answered(canary)
        elif version == canary.live and self._draw() < canary.shadow:
            self._shadow.offer(canary, canary.candidate, features)

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
        for model in self._observations.look(all_canaries(self._live)):
            self._shadow.forget(model)
        await self._writer.write()

    async def close(self) -> None:
        """Stop scoring, and write what was observed."""
        await self._shadow.close()
        await self.write()


class _Blaming:
    """A class and not a generator, because every request passes here."""

    def __init__(self, canaries: CanaryMonitor, version: ServedVersion) -> None:
        self._trials = canaries
        self._version = version

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception) and not issubclass(kind, ApiError):
            self._trials.failed(self._version)
