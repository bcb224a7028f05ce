"""Which version of each model answers: one reference per model, replaced in one step."""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from workers.serve.versions.loading import ServedVersion


@dataclass(frozen=True)
class LiveModel:
    """A version and the generation of the pointer that named it."""

    generation: int
    version: ServedVersion


class LiveVersions:
    """Written by the follower alone, read by every request without a lock.

    The mapping is never changed, only exchanged: a request that reads it once sees one version
    from its first row to its last, whatever happens meanwhile.
    """

    def __init__(self) -> None:
        self._live: Mapping[str, LiveModel] = MappingProxyType({})
        self._known: frozenset[str] = frozenset()
        self._looked = threading.Event()

    def get(self, model: str) -> LiveModel | None:
        """What answers for this model; None before its first version."""
        return self._live.get(model)

    def all(self) -> Mapping[str, LiveModel]:
        """Everything that answers, as of one moment."""
        return self._live

    def knows(self, model: str) -> bool:
        """Whether the store has anything of this model, be it without a live version."""
        return model in self._known or model in self._live

    def replace(self, model: str, live: LiveModel) -> None:
        """Let another version answer."""
        self._live = MappingProxyType({**self._live, model: live})

    def looked(self, known: Collection[str]) -> None:
        """The follower has seen the whole store once more: these models are there."""
        self._known = frozenset(known)
        self._looked.set()

    @property
    def ready(self) -> bool:
        """Whether the first look is over: before, an unknown model may just not be seen yet."""
        return self._looked.is_set()

    def wait_ready(self, seconds: float) -> bool:
        """Wait for the first look. False if it did not end in time."""
        return self._looked.wait(seconds)
