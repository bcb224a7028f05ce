"""From what a request asks for to the one version that answers it."""

import asyncio

from workers.contract.errors import ObjectNotFound, StorageUnavailable, WorkerError
from workers.serve.http.errors import InvalidRequest, NotFound, NotReady, VersionDamaged
from workers.serve.http.schemas import ModelReference
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import ServedVersion
from workers.serve.versions.recent import RecentVersions

_WAIT_STEP_SECONDS = 0.02


class VersionLookup:
    """Live versions by name, others by exact number."""

    def __init__(self, live: LiveVersions, recent: RecentVersions, wait_seconds: float) -> None:
        self._live = live
        self._recent = recent
        self._wait_seconds = wait_seconds

    async def find(self, wanted: ModelReference, min_version: int) -> ServedVersion:
        """The version that answers. Raises InvalidRequest, NotFound, NotReady, VersionDamaged."""
        if wanted.version is None:
            return await self._find_live(wanted.name, min_version)
        if wanted.version < min_version:
            raise InvalidRequest(
                f"model asks for exactly version {wanted.version}, the header x-min-model-version "
                f"for at least {min_version}",
                param="x-min-model-version",
            )
        return await self._find_exact(wanted.name, wanted.version)

    async def _find_live(self, name: str, min_version: int) -> ServedVersion:
        version = self._live_version(name)
        deadline = asyncio.get_running_loop().time() + (self._wait_seconds if min_version else 0)
        while version is None or version.number < min_version:
            if asyncio.get_running_loop().time() >= deadline:
                raise self._not_found(name, version, min_version)
            await asyncio.sleep(_WAIT_STEP_SECONDS)
            version = self._live_version(name)
        return version

    async def _find_exact(self, name: str, number: int) -> ServedVersion:
        live = self._live_version(name)
        if live is not None and live.number == number:
            return live
        try:
            return await self._recent.get(name, number)
        except ObjectNotFound as error:
            raise NotFound(
                f"model {name!r} has no published version {number}", "model", "version_not_found"
            ) from error
        except StorageUnavailable as error:
            raise NotReady(f"{name}@{number} cannot be loaded now; try again", "model") from error
        except WorkerError as error:
            raise VersionDamaged(
                f"{name}@{number} is stored, but it fails its checks", "model"
            ) from error

    def _live_version(self, name: str) -> ServedVersion | None:
        live = self._live.get(name)
        return live.version if live else None

    def _not_found(
        self, name: str, version: ServedVersion | None, min_version: int
    ) -> NotFound | NotReady:
        if version is not None:
            return NotReady(
                f"model {name!r} is at version {version.number}, at least {min_version} is asked "
                f"for; it did not come within {self._wait_seconds:g} s",
                "x-min-model-version",
                "version_not_ready",
            )
        if self._live.knows(name):
            return NotReady(f"model {name!r} has no live version yet", "model")
        if not self._live.ready:
            return NotReady("this replica has not seen the store yet", "model")
        return NotFound(f"there is no model {name!r}", "model")
