"""Shadowing: some requests of the live version are scored by the candidate as well, after their response.

No request waits for it: one is scored at a time, only while no rows wait for the heads, and for at most a fifth
of the time. What does not fit into the queue is dropped and counted.

Shapes: B rows of a request.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from cmcl.contract.rollout import PairAgreement
from workers.serve.batching.compute import BACKGROUND, Compute
from workers.serve.canary.agreement import RecentFeatures, VersionComparison
from workers.serve.canary.observations import Canary, Observations
from workers.serve.metrics import ServeMetrics
from workers.serve.versions.loading import Float32Array, ServedVersion

logger = logging.getLogger(__name__)

_MOST_WAITING = 64
# The agreement of a request's rows is that of its topic: a few say as much as all.
_ROWS_OF_A_REQUEST = 8
# After each request it pauses for four times as long as it took.
_REST = 4.0
_BUSY_SECONDS = 0.005


@dataclass(frozen=True)
class _Request:
    canary: Canary
    candidate: ServedVersion
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
        self, canary: Canary, candidate: ServedVersion, features: Mapping[str, Float32Array]
    ) -> None:
        """Queue a request (B × F for each modality) that the live version has answered."""
        if len(self._waiting) >= self._most_waiting:
            self._metrics.shadow_dropped(canary.model)
            return
        self._observations.begin(canary)
        few = {modality: _some(rows_BF) for modality, rows_BF in features.items()}
        self._waiting.append(_Request(canary, candidate, few))
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
            or versions.candidate is not request.candidate
        ):
            versions = VersionComparison(canary.live, request.candidate, self._recent)
            self._versions[model] = versions
        try:
            agreements: dict[str, PairAgreement] = {}
            for modality, rows_BF in request.features.items():
                found = await self._compute.run(BACKGROUND, versions.score, modality, rows_BF)
                agreements |= {
                    pair: agreements.get(pair, PairAgreement()) + one for pair, one in found.items()
                }
        except Exception:
            # Of any kind: the live version has answered this request and the candidate could not.
            if self._observations.failed(canary) == 1:
                logger.exception("%s fails where the live one answers", request.candidate.label)
        else:
            self._observations.scored(canary, agreements)


def _some(rows_BF: Float32Array) -> Float32Array:
    """A few rows, spread over the request; a copy, because a view would keep all of them in memory."""
    step = -(-len(rows_BF) // _ROWS_OF_A_REQUEST)
    return rows_BF[::step].copy()
