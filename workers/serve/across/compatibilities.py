"""Do vectors that an older version stored still meet the queries of the one that answers?"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping

import torch

from cmcl.contract.errors import WorkerError
from cmcl.contract.modality import ModalityPair
from workers.model.artifact import load_memory
from workers.model.migration import same_conditioning
from workers.nullspace.certificate import PairWeights
from workers.nullspace.compatibility import stored_change
from workers.serve.across.memories import identity_of, read_memory
from workers.serve.compute.port import BACKGROUND, Compute
from workers.serve.versions.loading import ServedVersion
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

# Each is a number for each pair.
_MOST_KEPT = 1024
_MOST_WANTED = 64

_Key = tuple[tuple[str, float], tuple[str, float]]
Changes = Mapping[str, float | None]


class Compatibilities:
    """Found out one after another in the background, when somebody asks. Used from one event loop."""

    def __init__(self, store: ObjectStore, compute: Compute) -> None:
        self._store = store
        self._compute = compute
        self._found: OrderedDict[_Key, Changes] = OrderedDict()
        self._wanted: dict[_Key, tuple[ServedVersion, ServedVersion]] = {}
        self._worker: asyncio.Task[None] | None = None

    def known(self, old: ServedVersion, new: ServedVersion) -> Changes | None:
        """By key of each pair that the old version has learned: the relative change (root mean
        square) of the scores of its stored vectors under queries of the new version, the larger of
        the two sides. None where the versions read features differently, so that nothing can be
        said from moments. None altogether while it is not known yet: it will be.
        """
        key = (identity_of(old), identity_of(new))
        found = self._found.get(key)
        if found is None and len(self._wanted) < _MOST_WANTED:
            self._wanted[key] = (old, new)
            if self._worker is None or self._worker.done():
                self._worker = asyncio.create_task(self._work(), name="compatibilities")
        return found

    async def settled(self) -> None:
        """Wait until everything that was asked for is known or has failed."""
        if self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        while self._wanted:
            key, (old, new) = next(iter(self._wanted.items()))
            try:
                self._found[key] = await self._find(old, new)
            except WorkerError as error:
                # Whoever lists the models next asks again.
                logger.warning("%s and %s cannot be compared: %s", old.label, new.label, error)
            finally:
                del self._wanted[key]
            if len(self._found) > _MOST_KEPT:
                self._found.popitem(last=False)

    async def _find(self, old: ServedVersion, new: ServedVersion) -> Changes:
        memory = await asyncio.to_thread(read_memory, self._store, old)
        return await self._compute.run(BACKGROUND, _changes, memory, old, new)


@torch.inference_mode()
def _changes(memory: bytes, old_version: ServedVersion, new_version: ServedVersion) -> Changes:
    # Read here, in a thread: they may have to be loaded.
    old, new = old_version.heads, new_version.heads
    found: dict[str, float | None] = {}
    for (first, second), moments in load_memory(memory).by_pair.items():
        key = ModalityPair(first=first, second=second).key
        comparable = all(same_conditioning(each, old, new) for each in (first, second))
        weights = [PairWeights(each.weights[first], each.weights[second]) for each in (old, new)]
        found[key] = stored_change(moments, *weights) if comparable else None
    return found
