"""From which checkpoint an attempt goes on: the newest one that an earlier attempt has left."""

import logging

from pydantic import ValidationError

from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.job import JobSpec
from workers.storage import layout
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)


def told_spec(store: ObjectStore, asked: JobSpec) -> JobSpec:
    """The specification that the attempt reads: as it was told before, or with its checkpoint now.

    A step may be repeated after the attempt has begun, when there may be other checkpoints. Told
    another one in the middle, ranks of one attempt would begin at different updates.
    """
    told = _told(store, asked.job, asked.attempt)
    if told is not None and _asks_alike(told, asked):
        return told
    return asked.model_copy(update={"resume_from": newest_checkpoint(store, asked)})


def newest_checkpoint(store: ObjectStore, asked: JobSpec) -> str | None:
    """Of the latest attempt that left any; None: there is nothing that may be used.

    Attempts that started from another version asked another question, because the model has moved
    on since. The search ends at one that came to an end by itself, with a candidate or with a word
    that it would fail again. The job was not over then only because the candidate was of no use, or
    because a user asks for a retry after something else was mended (the code, the shards). What led
    to that end may be in its checkpoints already, and in those that it went on from.
    """
    for attempt in range(asked.attempt - 1, 0, -1):
        if _came_to_an_end(store, asked.job, attempt):
            return None
        told = _told(store, asked.job, attempt)
        if told is not None and _asks_alike(told, asked):
            found = list(store.keys(layout.run_checkpoints(asked.job, attempt)))
            if found:
                return found[-1]
    return None


def _told(store: ObjectStore, job: str, attempt: int) -> JobSpec | None:
    key = layout.run_spec(job, attempt)
    try:
        return JobSpec.model_validate_json(store.read(key))
    except ObjectNotFound:
        return None
    except ValidationError as error:
        # Another release may have written it: then its checkpoints are not ours to judge.
        logger.warning("%s cannot be read: %s", key, error, extra={"job": job})
        return None


def _asks_alike(one: JobSpec, other: JobSpec) -> bool:
    """Whether both must lead to the same version."""
    apart = {"attempt": 0, "resume_from": None}
    return one.model_copy(update=apart) == other.model_copy(update=apart)


def _came_to_an_end(store: ObjectStore, job: str, attempt: int) -> bool:
    last_words = (
        layout.run_failure(job, attempt),
        layout.run_file(job, attempt, layout.MANIFEST),
    )
    return any(_is_there(store, key) for key in last_words)


def _is_there(store: ObjectStore, key: str) -> bool:
    try:
        store.size(key)
    except ObjectNotFound:
        return False
    return True
