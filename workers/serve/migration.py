"""Between two versions of a model: maps for stored vectors, and how well old vectors still fit.

Both need the moments of the older version. They may have hundreds of megabytes, so they are read when they are
needed and not kept.
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

import torch

from cmcl.contract.errors import InvalidVersion, WorkerError
from cmcl.contract.modality import ModalityPair
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import (
    considerate_sha256_of,
    read_memory_files,
    read_version,
    read_version_file,
)
from workers.model.artifact import SavedMemory, load_memory
from workers.model.migration import (
    CannotMigrate,
    NumberedHeads,
    check_same_conditioning,
    migration_between,
    same_conditioning,
)
from workers.nullspace.certificate import PairWeights, stored_change
from workers.nullspace.migrate import Migration
from workers.serve.background import BACKGROUND, BackgroundExecutor
from workers.serve.lru import AsyncLRUCache
from workers.serve.versions.loading import ServedVersion

logger = logging.getLogger(__name__)

# A map of width 1024 takes 8 MiB.
_MOST_MAPS = 16
_Key = tuple[tuple[str, float], tuple[str, float], str]
# Each is a number for each pair.
_MOST_KEPT = 1024
_Pair = tuple[tuple[str, float], tuple[str, float]]
Changes = Mapping[str, float | None]


def read_memory(store: ObjectStore, version: ServedVersion) -> SavedMemory:
    """Read the files of a version's memory, verified. Raises WorkerError."""
    manifest = read_version(store, version.model, version.number)
    if manifest.created_at != version.created_at:
        raise InvalidVersion(f"the store has another {version.label} by now")
    read = partial(read_version_file, store, manifest, hashed=considerate_sha256_of)
    return SavedMemory(*read_memory_files(manifest, read))


def identity_of(version: ServedVersion) -> tuple[str, float]:
    """An identity that also distinguishes versions of a model that was deleted and created again."""
    return version.label, version.created_at.timestamp()


class Migrations:
    """Maps between versions, cached. That there is none is cached as well: versions do not change."""

    def __init__(
        self, store: ObjectStore, background: BackgroundExecutor, most: int = _MOST_MAPS
    ) -> None:
        self._store = store
        self._background = background
        self._maps: AsyncLRUCache[_Key, Migration | CannotMigrate] = AsyncLRUCache(most)

    async def between(
        self, modality: str, old: ServedVersion, new: ServedVersion, owner: str = BACKGROUND
    ) -> Migration:
        """Return the map from the vectors of one version to those of the other.

        `owner`: whose turn it takes. Raises CannotMigrate, and WorkerError where the moments cannot be read.
        """
        asked = (identity_of(old), identity_of(new), modality)
        found = await self._maps.get(asked, lambda: self._find(modality, old, new, owner))
        if isinstance(found, CannotMigrate):
            raise type(found)(*found.args)  # A copy, because raising adds to the traceback.
        return found

    async def _find(
        self, modality: str, old: ServedVersion, new: ServedVersion, owner: str
    ) -> Migration | CannotMigrate:
        try:
            # Before the moments are read, which may have hundreds of megabytes.
            check_same_conditioning(modality, _numbered(old), _numbered(new))
        except CannotMigrate as error:
            return error
        memory = await asyncio.to_thread(read_memory, self._store, old)
        return await self._background.run(owner, _map, modality, memory, old, new)


@torch.inference_mode()
def _map(
    modality: str, memory: SavedMemory, old: ServedVersion, new: ServedVersion
) -> Migration | CannotMigrate:
    try:
        return migration_between(modality, load_memory(memory), _numbered(old), _numbered(new))
    except CannotMigrate as error:
        return error


def _numbered(version: ServedVersion) -> NumberedHeads:
    return NumberedHeads(version.number, version.heads)


class Compatibilities:
    """Whether stored vectors of old versions still fit: computed in the background, on request.

    Used from one event loop.
    """

    def __init__(self, store: ObjectStore, background: BackgroundExecutor) -> None:
        self._store = store
        self._background = background
        self._found: AsyncLRUCache[_Pair, Changes] = AsyncLRUCache(_MOST_KEPT)
        # The moments of one version are in memory at a time.
        self._turn = asyncio.Semaphore(1)

    def known(self, old: ServedVersion, new: ServedVersion) -> Changes | None:
        """Return by key of each pair that the old version has learned: the relative change (root mean
        square) of the scores of its stored vectors under queries of the new version, the larger of
        the two sides. None where the versions read features differently, so that nothing can be
        said from moments. None altogether while it is being computed.
        """
        key = (identity_of(old), identity_of(new))
        return self._found.peek(key, lambda: self._find(old, new))

    async def _find(self, old: ServedVersion, new: ServedVersion) -> Changes:
        async with self._turn:
            try:
                memory = await asyncio.to_thread(read_memory, self._store, old)
                return await self._background.run(BACKGROUND, _changes, memory, old, new)
            except Exception as error:
                # No request awaits it; the next one for this model begins it again.
                is_bug = not isinstance(error, WorkerError)
                logger.warning(
                    "%s and %s cannot be compared: %s", old.label, new.label, error, exc_info=is_bug
                )
                raise


@torch.inference_mode()
def _changes(
    memory: SavedMemory, old_version: ServedVersion, new_version: ServedVersion
) -> Changes:
    # In a thread, because they may have to be loaded.
    old, new = old_version.heads, new_version.heads
    found: dict[str, float | None] = {}
    for (first, second), moments in load_memory(memory).by_pair.items():
        key = ModalityPair(first=first, second=second).key
        comparable = all(same_conditioning(each, old, new) for each in (first, second))
        weights = [PairWeights(each.weights[first], each.weights[second]) for each in (old, new)]
        found[key] = stored_change(moments, *weights) if comparable else None
    return found
