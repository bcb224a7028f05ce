"""Maps that turn stored vectors of one version into those of another."""

import asyncio

import torch

from workers.model.artifact import load_memory
from workers.model.migration import (
    CannotMigrate,
    NumberedHeads,
    check_same_conditioning,
    migration_between,
    nothing_learned,
)
from workers.nullspace.migrate import Migration
from workers.serve.across.memories import identity_of, read_memory
from workers.serve.across.results import SharedResults
from workers.serve.compute.port import BACKGROUND, Compute
from workers.serve.versions.loading import ServedVersion
from workers.storage.object_store import ObjectStore

# A map of width 1024 takes 8 MiB.
_MOST_MAPS = 16

_Key = tuple[tuple[str, float], tuple[str, float], str]


class Migrations:
    """The maps that were asked for last. Also that there is none is remembered: versions stay."""

    def __init__(self, store: ObjectStore, compute: Compute, most: int = _MOST_MAPS) -> None:
        self._store = store
        self._compute = compute
        self._maps: SharedResults[_Key, Migration | CannotMigrate] = SharedResults(most)

    async def between(
        self, modality: str, old: ServedVersion, new: ServedVersion, tenant: str = BACKGROUND
    ) -> Migration:
        """The map from the vectors of one version to those of the other.

        `tenant`: whose turn it takes. Raises CannotMigrate, and WorkerError where the moments cannot be read.
        """
        asked = (identity_of(old), identity_of(new), modality)
        found = await self._maps.get(asked, lambda: self._find(modality, old, new, tenant))
        if isinstance(found, CannotMigrate):
            raise type(found)(*found.args)  # Its own, as each raising adds to a traceback.
        return found

    async def _find(
        self, modality: str, old: ServedVersion, new: ServedVersion, tenant: str
    ) -> Migration | CannotMigrate:
        refusal = _refusal(modality, old, new)
        if refusal is not None:
            return refusal
        memory = await asyncio.to_thread(read_memory, self._store, old)
        return await self._compute.run(tenant, _map, modality, memory, old, new)


def _refusal(modality: str, old: ServedVersion, new: ServedVersion) -> CannotMigrate | None:
    """What can be told without the moments, which may be hundreds of megabytes."""
    if not any(modality in pair.modalities for pair in old.pairs):
        return nothing_learned(modality, old.number)
    try:
        check_same_conditioning(modality, _numbered(old), _numbered(new))
    except CannotMigrate as error:
        return error
    return None


@torch.inference_mode()
def _map(
    modality: str, memory: bytes, old: ServedVersion, new: ServedVersion
) -> Migration | CannotMigrate:
    try:
        return migration_between(modality, load_memory(memory), _numbered(old), _numbered(new))
    except CannotMigrate as error:
        return error


def _numbered(version: ServedVersion) -> NumberedHeads:
    return NumberedHeads(version.number, version.heads)
