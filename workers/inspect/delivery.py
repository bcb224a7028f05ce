"""A pre-flight that the service asked for: its shards come from the store, its answer goes there."""

from pydantic import ValidationError

from cmcl.contract.errors import InvalidVersion, WorkerError
from cmcl.contract.preflight import AskedShards, Outlook, PreflightAnswer
from workers.inspect.preflight import DatasetOutlook
from workers.inspect.show import as_json
from workers.storage.port import ObjectStore


def asked_shards(store: ObjectStore, key: str) -> AskedShards:
    """What the service wrote. Raises ObjectNotFound, InvalidVersion, StorageUnavailable."""
    try:
        return AskedShards.model_validate_json(store.read(key))
    except ValidationError as error:
        raise InvalidVersion(f"{key} cannot be read: {error}") from error


def leave_outlook(store: ObjectStore, key: str, outlook: DatasetOutlook) -> None:
    """The whole answer at once: whoever looks for it sees all of it, or nothing."""
    answer = PreflightAnswer(outlook=Outlook.model_validate_json(as_json(outlook)))
    _leave(store, key, answer)


def leave_error(store: ObjectStore, key: str, error: Exception) -> None:
    """Why there is no answer. A disk that is full here can have room on another machine."""
    can_help = (
        error.retry_can_help if isinstance(error, WorkerError) else isinstance(error, OSError)
    )
    _leave(store, key, PreflightAnswer(error=str(error), retry_can_help=can_help))


def _leave(store: ObjectStore, key: str, answer: PreflightAnswer) -> None:
    store.put(key, answer.model_dump_json().encode())
