"""Errors of the data plane.

WorkerError                     base class
├── InvalidDataset              the user's rows cannot be used; a retry cannot help
├── NothingToLearn              no entry of the two heads may move, or a side does not vary; a retry cannot help
├── UnknownMethod               the model's method is not installed; a retry helps once it is installed
├── CannotCombine               a dataset cannot be unlearned, or versions not merged; a retry cannot help
├── TrainingDiverged            the loss or a head is no longer finite; a retry cannot help
├── InvalidVersion              a stored version is incomplete or damaged
├── StoreDamaged                stored data of earlier datasets; a retry helps once it is restored
├── VersionTaken                another version has this number; a retry cannot help
└── StorageError                object storage
    ├── ObjectNotFound          nothing under that key
    ├── ObjectExists            the key was already taken
    ├── DigestMismatch          the bytes do not match the digest
    ├── InvalidUri              not a readable address
    └── StorageUnavailable      the store did not respond; a retry can help
"""


def shortened(text: str, longest: int = 100) -> str:
    """Return the beginning of a text, for a message."""
    return text if len(text) <= longest else f"{text[:longest]}…"


class WorkerError(Exception):
    """Base class of the errors that the data plane raises."""

    retry_can_help = False


class InvalidDataset(WorkerError):
    """The user's rows cannot be used. The message names the file, column or row, and what is permitted."""


class NothingToLearn(WorkerError):
    """No entry of the two heads may move, or no batch can be filled. The message says what to change."""


class UnknownMethod(WorkerError):
    """The model's method is not installed, or is not a method. The message says what to install."""


class CannotCombine(WorkerError):
    """A dataset cannot be taken out of a version, or another version not be added to it; the message says why."""


class TrainingDiverged(WorkerError):
    """The loss or a head is no longer finite. The message says what to change."""


class InvalidVersion(WorkerError):
    """A stored version is incomplete or damaged."""


class StoreDamaged(WorkerError):
    """Stored data of earlier datasets is missing or damaged. The message names the object and the remedy."""


class VersionTaken(WorkerError):
    """Another version has this number in object storage; it is not overwritten."""


class StorageError(WorkerError):
    """Object storage refused or failed."""


class ObjectNotFound(StorageError):
    """No object has this key."""


class ObjectExists(StorageError):
    """An object with this key exists already."""


class DigestMismatch(StorageError):
    """The bytes do not match the expected SHA-256."""


class InvalidUri(StorageError):
    """Not a readable address, or outside the allowed prefixes."""


class StorageUnavailable(StorageError):
    """The store did not respond properly; a retry can help."""

    retry_can_help = True


NON_RETRYABLE = (
    InvalidDataset,
    NothingToLearn,
    CannotCombine,
    StoreDamaged,
    TrainingDiverged,
    UnknownMethod,
)
"""What another attempt would meet again: people have to do something first."""
