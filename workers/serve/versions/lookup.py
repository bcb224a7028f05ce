"""Find the version that answers a request: the live one, or the one that it names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from cmcl.contract.errors import ObjectNotFound, StorageUnavailable, WorkerError
from cmcl.contract.modality import NAME_PATTERN
from workers.serve.auth import Caller
from workers.serve.errors import (
    ApiError,
    InvalidRequest,
    NotFound,
    NotReady,
    Overloaded,
    VersionDamaged,
    shortened,
)
from workers.serve.versions.cache import VersionCache
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import ServedVersion
from workers.serve.versions.memory import NoRoom, TooLarge

_VERSION_PATTERN = r"[1-9][0-9]{0,8}"
# Kept parsed.
_REFERENCES = 256


@dataclass(frozen=True)
class ModelReference:
    """A model and its live version, or `name@version`: exactly that version."""

    name: str
    version: int | None


@lru_cache(_REFERENCES)
def parse_reference(text: str) -> ModelReference:
    """Raises InvalidRequest."""
    name, at, version = text.partition("@")
    if not re.fullmatch(NAME_PATTERN, name) or (at and not re.fullmatch(_VERSION_PATTERN, version)):
        raise InvalidRequest(
            f"model is {shortened(text)}; permitted is a name of lower-case letters, digits and "
            "inner hyphens, up to 48 characters, optionally followed by @ and a version from 1",
            param="model",
        )
    return ModelReference(name, int(version) if at else None)


def parse_version(text: str | None, where: str) -> int:
    """A version in a header or parameter; 0 where it is absent. Raises InvalidRequest."""
    if text is None:
        return 0
    if not re.fullmatch(_VERSION_PATTERN, text):
        raise InvalidRequest(
            f"{where} is {shortened(text)}; permitted is a version from 1", param=where
        )
    return int(text)


class VersionLookup:
    """Finds live versions by name, others by exact number."""

    def __init__(self, live: LiveVersions, cache: VersionCache, wait_seconds: float) -> None:
        self._live = live
        self._cache = cache
        self._wait_seconds = wait_seconds

    async def find(self, wanted: ModelReference, min_version: int, caller: Caller) -> ServedVersion:
        """Return the version that answers, with its heads in memory.

        Raises InvalidRequest, NotFound, NotReady, Overloaded, VersionDamaged.
        """
        if wanted.version is None:
            return await self._find_live(wanted.name, min_version, caller)
        if wanted.version < min_version:
            raise InvalidRequest(
                f"model asks for exactly version {wanted.version}, the header x-min-model-version "
                f"for at least {min_version}",
                param="x-min-model-version",
            )
        return await self._find_exact(wanted.name, wanted.version, caller)

    async def pinned(self, version: ServedVersion) -> ServedVersion:
        """Return the version with heads that stay in memory as long as it, loaded where they are not.

        Raises as `find`.
        """
        try:
            return version.pinned() or await self._load(version.model, version.number)
        except Overloaded as error:
            # The request named no version, so the client cannot avoid the load.
            raise NotReady(str(error), error.param, error.code) from error
        except NotFound as error:
            # It answered a moment ago, so its model is being removed.
            message = f"{version.label} is no longer in object storage"
            raise NotReady(message, "model") from error

    def loaded(self) -> Mapping[str, list[ServedVersion]]:
        """Return the versions that are in memory, by model."""
        return self._cache.by_model()

    async def _find_live(self, name: str, min_version: int, caller: Caller) -> ServedVersion:
        def find() -> ServedVersion | None:
            live = self._live.get(name)
            if live is None or not caller.sees(live.owner):
                return None
            return live.version if live.version.number >= min_version else None

        version = find()
        if version is None and min_version:
            version = await self._live.wait_for(find, self._wait_seconds)
        if version is None:
            raise self._unanswered(name, min_version, caller)
        return await self.pinned(version)

    async def _find_exact(self, name: str, number: int, caller: Caller) -> ServedVersion:
        self._check_exact(name, number, caller)
        in_memory = self._in_memory(name, number)
        version = (in_memory and in_memory.pinned()) or await self._load(name, number)
        # Again: it may have been retired, or its model deleted, while it was loaded.
        self._check_exact(name, number, caller)
        return version

    def _check_exact(self, name: str, number: int, caller: Caller) -> None:
        pointer = self._live.pointer(name)
        if pointer is None or not caller.sees(pointer.owner):
            raise self._unanswered(name, 0, caller)
        if number in pointer.retired:
            raise NotFound(
                f"version {number} of model {name!r} is retired", "model", "version_retired"
            )

    def _in_memory(self, name: str, number: int) -> ServedVersion | None:
        live = self._live.get(name)
        if live is not None and live.version.number == number:
            return live.version
        return self._cache.get(name, number)

    async def _load(self, name: str, number: int) -> ServedVersion:
        try:
            return await self._cache.find(name, number)
        except ObjectNotFound as error:
            raise NotFound(
                f"model {name!r} has no published version {number}", "model", "version_not_found"
            ) from error
        except NoRoom as error:
            raise NotReady(str(error), "model", "no_room") from error
        except TooLarge as error:
            raise NotReady(str(error), "model", "version_too_large") from error
        except StorageUnavailable as error:
            raise NotReady(f"{name}@{number} cannot be loaded now; try again", "model") from error
        except WorkerError as error:
            raise VersionDamaged(
                f"{name}@{number} is stored, but it fails its checks", "model"
            ) from error

    def _unanswered(self, name: str, min_version: int, caller: Caller) -> ApiError:
        """Return why nothing answers. Another owner's model is reported like one that does not exist."""
        pointer, live = self._live.pointer(name), self._live.get(name)
        visible = caller.owner is None if pointer is None else caller.sees(pointer.owner)
        if not self._live.readiness.ready and (live is None or not visible):
            return NotReady("this replica has not seen the store yet", "model")
        if not visible or not self._live.has(name):
            return NotFound(f"there is no model {name!r} with a version", "model")
        if live is None:
            return NotReady(f"model {name!r} has no live version yet", "model")
        return NotReady(
            f"model {name!r} is at version {live.version.number}, at least {min_version} is asked "
            f"for; it did not come within {self._wait_seconds:g} s",
            "x-min-model-version",
            "version_not_ready",
        )
