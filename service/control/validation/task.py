"""What a validation is told, and what it answers. Light to import: a process of its own does both."""

from collections.abc import Mapping
from typing import Protocol

from cmcl.contract.dataset import DatasetManifest, ShardRef
from cmcl.contract.modality import Frozen, ModalityPair
from cmcl.contract.model import ModelSpec
from workers.storage.object_store import ObjectStore


class ValidationTask(Frozen):
    """A dataset as it was posted, and what its shards are held against.

    `allowed`: prefixes of users' addresses, looked at again as they are read. `places`: where in our
    store an address lies that is not a user's own, such as that of an upload.
    """

    dataset: str
    model: str
    name: str
    pair: ModalityPair
    shards: tuple[ShardRef, ...]
    evaluation_shards: tuple[ShardRef, ...] = ()
    evaluation_share: float | None = None
    spec: ModelSpec
    allowed: tuple[str, ...] = ()
    places: Mapping[str, str] = {}


class Errand(Frozen):
    """The one document on the standard input of a process that validates.

    `folder`: for copies of shards. `memory` in bytes, `seconds` of processor time: its bounds.
    """

    store: str
    folder: str
    memory: int
    seconds: int
    task: ValidationTask


class Word(Frozen):
    """A line of its standard output: the file that is read next; in the end manifest or error.

    `error` is the name of the exception, `words` what it says.
    """

    reading: str | None = None
    manifest: DatasetManifest | None = None
    error: str | None = None
    words: str = ""


class Killable(Protocol):
    """A process, as far as it can be ended."""

    def kill(self) -> None:
        """End it now; nothing happens if it has ended."""


class Leash(Protocol):
    """How whoever waits for a validation ends it."""

    @property
    def is_cut(self) -> bool:
        """Whether nobody waits for it any more."""

    def hold(self, process: Killable) -> None:
        """End that process once nobody waits: at once if it is so already."""


class Reader(Protocol):
    """One way to validate: within this process, or in one of its own."""

    def read(self, store: ObjectStore, task: ValidationTask, leash: Leash) -> DatasetManifest:
        """The manifest, which is also in the store. Raises InvalidDataset, InvalidUri,
        StorageUnavailable; anything else is a mistake of ours, or of this machine."""
