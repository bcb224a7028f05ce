"""Find the version that answers a request: live, canary, or named exactly."""

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

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


def routed_to_canary(model: str, revision: int, key: str, share: float) -> bool:
    """Whether the caller with this routing key gets the canary: the same ones in every replica, without a list.

    `revision`: of the pointer that began the canary, so that another canary gets other callers. A caller stays
    when the share grows.
    """
    digest = hashlib.blake2b(f"{model}/{revision}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64


@dataclass(frozen=True)
class Chosen:
    """The version that answers a request, with its heads in memory, and the channel."""

    version: ServedVersion
    channel: Literal["live", "canary", "exact"]


class VersionLookup:
    """Finds live versions and canaries by name, others by exact number."""

    def __init__(self, live: LiveVersions, cache: VersionCache, wait_seconds: float) -> None:
        self._live = live
        self._cache = cache
        self._wait_seconds = wait_seconds

    async def find(
        self, wanted: ModelReference, min_version: int, caller: Caller, routing: str | None = None
    ) -> Chosen:
        """The version that answers.

        Raises InvalidRequest, NotFound, NotReady, Overloaded, VersionDamaged.

        `routing`: the header x-routing-key. Requests with the same one get the same version while a canary
        runs; without it those of the same key do, and without keys the version is random.
        """
        if wanted.version is None:
            return await self._find_by_name(wanted.name, min_version, caller, routing or caller.key)
        if wanted.version < min_version:
            raise InvalidRequest(
                f"model asks for exactly version {wanted.version}, the header x-min-model-version "
                f"for at least {min_version}",
                param="x-min-model-version",
            )
        return Chosen(await self._find_exact(wanted.name, wanted.version, caller), "exact")

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

    async def _find_by_name(self, name: str, min_version: int, caller: Caller, key: str) -> Chosen:
        def choose() -> Chosen | None:
            return self._choose(name, min_version, caller, key)

        chosen = choose()
        if chosen is None and min_version:
            chosen = await self._live.wait_for(choose, self._wait_seconds)
        if chosen is None:
            raise self._unanswered(name, min_version, caller)
        return Chosen(await self.pinned(chosen.version), chosen.channel)

    def _choose(self, name: str, min_version: int, caller: Caller, key: str) -> Chosen | None:
        live = self._live.get(name)
        if live is None or not caller.sees(live.owner):
            return None
        loaded, canary = live.loaded_canary, live.canary
        if (
            loaded is not None
            and canary is not None
            and loaded.number >= min_version
            and routed_to_canary(name, canary.revision, key or secrets.token_hex(8), canary.share)
        ):
            return Chosen(loaded, "canary")
        return Chosen(live.version, "live") if live.version.number >= min_version else None

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
