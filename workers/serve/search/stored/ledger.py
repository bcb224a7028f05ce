"""Revisions of a collection: read, and made by compare-and-set on the next number.

A change is a function from the newest revision to the next one. If somebody else made that number
first, the change is asked again, with what they made. There is no lock, and no writer whose death
could leave one behind.
"""

import random
import time
import uuid
from collections.abc import Callable

from pydantic import ValidationError

from workers.contract.errors import InvalidVersion, ObjectExists, ObjectNotFound, WorkerError
from workers.serve.search.stored.revision import Revision
from workers.storage import layout
from workers.storage.port import ObjectStore

# Of what is asked once more by somebody who was overtaken; older ones are swept.
KEPT_REVISIONS = 32
_ATTEMPTS = 40
_LONGEST_PAUSE_SECONDS = 0.25

Change = Callable[[Revision | None], Revision]


class CollectionBusy(WorkerError):
    """Others were quicker, many times in a row. Trying again can help."""

    retry_can_help = True


def collection_names(store: ObjectStore) -> list[str]:
    """Of all that ever were, also of deleted ones."""
    return store.folders(layout.collections())


def newest_number(store: ObjectStore, name: str) -> int:
    """0 where there never was such a collection."""
    numbers = revision_numbers(store, name)
    return numbers[-1] if numbers else 0


def revision_numbers(store: ObjectStore, name: str) -> list[int]:
    """Those that are still there, the oldest first."""
    prefix = layout.collection_revisions(name)
    return [int(key.removeprefix(prefix).removesuffix(".json")) for key in store.keys(prefix)]


def newest(store: ObjectStore, name: str) -> Revision | None:
    """The revision that counts, which may say that the collection is deleted. Raises InvalidVersion."""
    while number := newest_number(store, name):
        try:
            return read_revision(store, name, number)
        except ObjectNotFound:
            continue  # since it was listed so many were made that it was swept
    return None


def read_revision(store: ObjectStore, name: str, number: int) -> Revision:
    """Raises ObjectNotFound, InvalidVersion."""
    key = layout.collection_revision(name, number)
    try:
        return Revision.model_validate_json(store.read(key))
    except ValidationError as error:
        raise InvalidVersion(f"{store.uri}/{key} cannot be read: {error}") from error


def commit(store: ObjectStore, name: str, change: Change) -> Revision:
    """Make the next revision. Raises CollectionBusy, StorageUnavailable, and what `change` raises.

    `change` gives the content; revision, change and parent are filled in here. It must be harmless
    to make twice: where it cannot be told whether a change arrived, it is made again.
    """
    for attempt in range(_ATTEMPTS):
        head = newest(store, name)
        wanted = _numbered(change(head), head)
        try:
            store.create(
                layout.collection_revision(name, wanted.revision), wanted.model_dump_json().encode()
            )
        except ObjectExists:
            time.sleep(random.uniform(0, min(0.01 * 2.0**attempt, _LONGEST_PAUSE_SECONDS)))  # noqa: S311
            continue
        if _counts(store, wanted):
            return wanted
    raise CollectionBusy(f"collection {name!r}: {_ATTEMPTS} times somebody else wrote first")


def _numbered(content: Revision, head: Revision | None) -> Revision:
    fields = {
        "revision": head.revision + 1 if head else 1,
        "parent": head.change if head else None,
        "change": uuid.uuid4().hex,
    }
    return content.model_copy(update=fields)


def _counts(store: ObjectStore, made: Revision) -> bool:
    """Whether what was written is part of the history.

    Old numbers are swept. A writer that slept since it looked could take such a number once more,
    far behind what counts by now, and nobody would ever read what it wrote.
    """
    if newest_number(store, made.name) == made.revision:
        return True
    try:
        following = read_revision(store, made.name, made.revision + 1)
    except ObjectNotFound:
        return False
    return following.parent == made.change
