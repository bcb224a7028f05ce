"""A candidate on trial beside the live version of a model, as one replica has it now."""

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
from workers.storage.port import ObjectStore

logger = logging.getLogger(__name__)

_WRITE_SECONDS = 3.0
_LAST_SECONDS = 5.0


class CanaryMonitor:
    """Counts the candidate's requests, shadows the live version's, and writes down what it saw."""

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
        """This version has answered a request with these features (B × F, by modality)."""
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
        """This version could not answer, and that was not the client's fault."""
        canary = canary_of(version.model, self._live)
        if canary is not None and version.number == canary.version:
            self._observations.begin(canary)
            self._observations.failed(canary)

    def counting_failures(self, version: ServedVersion) -> "_Blaming":
        """What breaks inside is this version's fault, unless the client can be told what it did."""
        return _Blaming(self, version)

    @asynccontextmanager
    async def written(self, seconds: float = _WRITE_SECONDS) -> AsyncIterator[None]:
        """While the block runs: write from time to time, and once more at its end."""
        over = asyncio.Event()
        writing = asyncio.create_task(self._write_until(over, seconds), name="observations")
        try:
            yield
        finally:
            # Not cancelled: a thread in the middle of writing would write over what comes last.
            over.set()
            try:
                async with asyncio.timeout(_LAST_SECONDS):
                    await writing
                    await self.close()
            except TimeoutError:
                logger.warning("the store hangs: the last that was seen of trials is not written")

    async def _write_until(self, over: asyncio.Event, seconds: float) -> None:
        while not over.is_set():
            try:
                await self.write()
            except Exception:
                # A bug, but one that must not end what the control plane judges trials by.
                logger.exception("what was seen of trials was not written")
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await over.wait()

    async def write(self) -> None:
        """What has changed since the last time, and the last word on trials that are over."""
        for model in self._observations.look(all_canaries(self._live)):
            self._shadow.forget(model)
        await self._writer.write()

    async def close(self) -> None:
        """Score no more, and write what was seen."""
        await self._shadow.close()
        await self.write()


class _Blaming:
    """A class and no generator, as every request passes here."""

    def __init__(self, canaries: CanaryMonitor, version: ServedVersion) -> None:
        self._trials = canaries
        self._version = version

    def __enter__(self) -> None:
        """Nothing is to be done before."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception) and not issubclass(kind, ApiError):
            self._trials.failed(self._version)
