"""Errors of the data plane.

WorkerError                     anything we raise on purpose
├── InvalidDataset              the user's rows cannot be used; a retry cannot help
├── NothingToLearn              no entry of the two heads may move; a retry cannot help
├── UnknownMethod               the model's method is not installed; a retry helps once it is
├── TrainingDiverged            the loss or a head is no longer finite; a retry cannot help
├── InvalidVersion              a stored version is incomplete or damaged
├── StoreDamaged                what earlier datasets left is; a retry helps once it is restored
├── VersionTaken                another version has this number; a retry cannot help
└── StorageError                object storage
    ├── ObjectNotFound          nothing under that key
    ├── ObjectExists            the key was already taken
    ├── DigestMismatch          other bytes than were promised
    ├── InvalidUri              not an address that we can read
    └── StorageUnavailable      the store did not answer; a retry can help
"""


class WorkerError(Exception):
    """Anything the data plane raises on purpose."""

    retry_can_help = False


class InvalidDataset(WorkerError):
    """The user's rows cannot be used. The message names file, column or row, and what is permitted."""


class NothingToLearn(WorkerError):
    """No entry of the two heads may move, or no batch can be filled. Says what to change."""


class UnknownMethod(WorkerError):
    """The model's method is not installed where it is needed, or is none. Says what to install."""


class TrainingDiverged(WorkerError):
    """The loss or a head is no longer finite. The message says what to change."""


class InvalidVersion(WorkerError):
    """A stored version is incomplete or damaged."""


class StoreDamaged(WorkerError):
    """What earlier datasets left is missing or damaged. Says which object, and what to do."""


class VersionTaken(WorkerError):
    """Another version has this number in object storage, and is not written over."""


class StorageError(WorkerError):
    """Object storage refused or failed."""


class ObjectNotFound(StorageError):
    """There is nothing under that key."""


class ObjectExists(StorageError):
    """The key was already taken; it can be taken only once."""


class DigestMismatch(StorageError):
    """The bytes are not those that were promised (SHA-256)."""


class InvalidUri(StorageError):
    """Not an address that we can read, or outside the allowed prefixes."""


class StorageUnavailable(StorageError):
    """The store did not answer as it should; trying again can help."""

    retry_can_help = True


NON_RETRYABLE = (InvalidDataset, NothingToLearn, StoreDamaged, TrainingDiverged, UnknownMethod)
"""What another attempt would meet again: people have to do something first."""
