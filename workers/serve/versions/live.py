"""The live version of each model, replaced in one step; and which version answers a request: that one, or a named one."""

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import TypeVar

from cmcl.contract.errors import ObjectNotFound, StorageUnavailable, WorkerError
from cmcl.contract.modality import NAME_PATTERN
from cmcl.contract.version import LivePointer
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
from workers.serve.threads import SYSTEM, Threads
from workers.serve.versions.cache import NoRoom, TooLarge, VersionCache
from workers.serve.versions.loading import ServedVersion

logger = logging.getLogger(__name__)

T = TypeVar("T")


class StoreReadiness:
    """Whether a replica has seen the store: until then an unknown model may just not have been seen.

    Ready when every model of the first listing was tried: loaded, refused, or found without a version. Used
    from several threads.
    """

    def __init__(self, threads: Threads = SYSTEM) -> None:
        self._untried: set[str] | None = None
        self._ready = threads.event()
        self._lock = threads.lock()
        self._reason = "this replica has not seen the store yet"

    @property
    def ready(self) -> bool:
        """Whether the first poll of the store is over."""
        return self._ready.is_set()

    @property
    def reason(self) -> str:
        """Why the replica is not ready; of no meaning once it is."""
        return self._reason

    def wait(self, seconds: float) -> bool:
        """Block until the replica is ready. False after `seconds`."""
        return self._ready.wait(seconds)

    def failed(self, error: WorkerError) -> None:
        """Note that the store could not be listed."""
        with self._lock:
            if self._untried is None:
                self._reason = f"this replica has not seen the store yet: {error}"

    def listed(self, models: Collection[str]) -> None:
        """Note the models that the store has; only the first listing counts."""
        with self._lock:
            if self._untried is None:
                self._untried = set(models)
            self._check()

    def tried(self, model: str) -> None:
        """Note that the version its pointer names was taken or refused, or that there is no pointer."""
        with self._lock:
            if self._untried is not None:
                self._untried.discard(model)
                self._check()

    def _check(self) -> None:
        assert self._lock.locked()
        assert self._untried is not None
        if not self._untried:
            self._ready.set()
        else:
            self._reason = f"models whose live version was not tried yet: {len(self._untried)}"


def wait_until_ready(
    readiness: StoreReadiness, seconds: float, others_answer: Callable[[], bool]
) -> None:
    """Hold a new replica back until it has seen the store: before, it would answer 503.

    For `seconds`, and for as long as other replicas answer in its place, so that neither a restart nor an
    update replaces a replica that answers with one that cannot. Without other replicas it starts anyway:
    requests and `/readyz` are answered with the reason, and the store is polled all the time.
    """
    while not readiness.wait(seconds):
        if not others_answer():
            logger.warning("requests are answered with 503: %s", readiness.reason)
            return
        logger.warning("waiting while other replicas answer: %s", readiness.reason)


@dataclass(frozen=True)
class LiveModel:
    """The live version of one model, and what else its pointer says.

    `generation` and `revision` are those of the pointer that named `version`.
    """

    generation: int
    revision: int
    version: ServedVersion
    owner: str | None = None
    retired: tuple[int, ...] = ()

    @property
    def order(self) -> tuple[int, int]:
        """As in `LivePointer`: the later one has the larger order."""
        return (self.generation, self.revision)

    def updated(self, pointer: LivePointer) -> "LiveModel":
        """Return it with everything of a pointer that applies at once, whether or not its version can be loaded."""
        return replace(self, owner=pointer.owner, retired=pointer.retired)


@dataclass(frozen=True)
class Refusal:
    """A version of the pointer of `order` that could not be used, and why.

    `kind`: unavailable, missing, damaged, too_large or error. `retry_at`: by the follower's clock.
    """

    version: int
    order: tuple[int, int]
    kind: str
    reason: str
    failures: int
    retry_at: float

    @property
    def generation(self) -> int:
        """Generation of the pointer."""
        return self.order[0]


class LiveVersions:
    """Written by the follower's threads, read by every request without a lock.

    The mappings are never changed, only replaced: a request that reads once uses one version from its first row
    to its last.
    """

    def __init__(self, threads: Threads = SYSTEM) -> None:
        self._live: Mapping[str, LiveModel] = MappingProxyType({})
        self._pointers: Mapping[str, LivePointer] = MappingProxyType({})
        self._refusals: Mapping[str, Refusal] = MappingProxyType({})
        self._listed: frozenset[str] = frozenset()
        # Deleted models of which the store still has files: they are not new models.
        self._gone: frozenset[str] = frozenset()
        self.readiness = StoreReadiness(threads)
        self._writing = threads.lock()

    def get(self, model: str) -> LiveModel | None:
        """Return the live version of this model; None before its first."""
        return self._live.get(model)

    def all(self) -> Mapping[str, LiveModel]:
        """Return all live versions, as of one moment."""
        return self._live

    def pointer(self, model: str) -> LivePointer | None:
        return self._pointers.get(model)

    def pointers(self) -> Mapping[str, LivePointer]:
        """Return the latest pointer of every model, as of one moment."""
        return self._pointers

    def has(self, model: str) -> bool:
        """Whether the store has this model, with or without a live version."""
        return model in self._pointers or model in self._listed - self._gone

    def refusal(self, model: str) -> Refusal | None:
        """Return why the version of the latest pointer cannot be used; None if it can, or was not tried yet."""
        return self._refusals.get(model)

    def update(self, model: str, pointer: LivePointer) -> bool:
        """Take a new pointer. False where it is not newer. Owner and retirements apply at once."""
        with self._writing:
            known = self._pointers.get(model)
            if known is not None and pointer.order <= known.order:
                return False
            self._pointers = _with(self._pointers, model, pointer)
            self._gone -= {model}
            self._refusals = _without(self._refusals, model)
            live = self._live.get(model)
            assert live is None or live.order <= pointer.order, "a pointer went back"
            if live is not None:
                self._live = _with(self._live, model, live.updated(pointer))
            return True

    def swap(self, model: str, pointer: LivePointer, version: ServedVersion) -> bool:
        """Make the version of that pointer live, unless it was superseded or its model is deleted."""
        with self._writing:
            newest, live = self._pointers.get(model), self._live.get(model)
            if newest is None or (live is not None and pointer.order <= live.order):
                return False
            if pointer.order > newest.order:
                return False  # It is that of a deleted model, whose name is used again.
            if version.number in newest.retired and version.number != newest.version:
                return False
            assert version.model == model
            swapped = LiveModel(*pointer.order, version).updated(newest)
            self._live = _with(self._live, model, swapped)
            self._refusals = _without(self._refusals, model)
            return True

    def refuse(self, model: str, refusal: Refusal) -> bool:
        """Note a version that could not be used, unless its pointer was superseded."""
        with self._writing:
            newest = self._pointers.get(model)
            if newest is None or newest.order != refusal.order:
                return False
            self._refusals = _with(self._refusals, model, refusal)
            return True

    def forget(self, model: str) -> None:
        """Remove a deleted model."""
        with self._writing:
            self._live = _without(self._live, model)
            self._pointers = _without(self._pointers, model)
            self._refusals = _without(self._refusals, model)
            self._gone |= {model}

    def listed(self, models: Collection[str]) -> None:
        """Note the models of a new listing of the store."""
        with self._writing:
            self._listed = frozenset(models)
            self._gone &= self._listed
        self.readiness.listed(models)


def _with(mapping: Mapping[str, T], key: str, value: T) -> Mapping[str, T]:
    return MappingProxyType({**mapping, key: value})


def _without(mapping: Mapping[str, T], key: str) -> Mapping[str, T]:
    return MappingProxyType({name: each for name, each in mapping.items() if name != key})


# Between two looks for a version that a request waits for.
_LOOK_SECONDS = 0.02
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
            found = await self._find_live(wanted.name, min_version, caller)
            assert found.model == wanted.name
            assert found.number >= min_version
            assert found.source.in_memory is found.source, "its heads could be evicted"
            return found
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
            loop = asyncio.get_running_loop()
            until = loop.time() + self._wait_seconds
            while (version := find()) is None and loop.time() < until:
                await asyncio.sleep(_LOOK_SECONDS)
        if version is None:
            raise self._unanswered(name, min_version, caller)
        return await self.pinned(version)

    async def _find_exact(self, name: str, number: int, caller: Caller) -> ServedVersion:
        self._check_exact(name, number, caller)
        in_memory = self._in_memory(name, number)
        version = (in_memory and in_memory.pinned()) or await self._load(name, number)
        # Again: it may have been retired, or its model deleted, while it was loaded.
        self._check_exact(name, number, caller)
        assert (version.model, version.number) == (name, number)
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
