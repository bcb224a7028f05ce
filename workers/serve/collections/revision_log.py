"""Revisions of a collection: read, and made by compare-and-set on the next number.

A change is a function from the newest revision to the next one. If somebody else made that number
first, the change is asked again, with what they made. There is no lock, and no writer whose death
could leave one behind.

A name that was deleted long ago is freed (`stored/sweep.py`): all its revisions are removed, up to a
mark that nobody builds on. The numbers of whoever takes the name again begin above all that were ever
removed, so that a replica or a writer that has missed all this cannot take one life for the other.
"""

import random
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from cmcl.contract.errors import InvalidVersion, ObjectExists, ObjectNotFound, WorkerError
from cmcl.contract.modality import NAME_PATTERN, Frozen, ModelName, Sha256
from workers.serve.collections.idempotency import marked, new_mark
from workers.storage import layout
from workers.storage.port import ObjectStore

CollectionName = Annotated[
    str, StringConstraints(pattern=NAME_PATTERN), Field(examples=["street-photos"])
]
FeatureType = Literal["float32", "float16"]


class Segment(Frozen):
    """Rows that were written together, in a file that never changes.

    Of two rows with the same id the one in the later segment counts.
    """

    name: str
    sha256: Sha256
    bytes: int = Field(ge=1)
    rows: int = Field(ge=1, description="rows in the file: removals count, and what was replaced")
    texts_bytes: int = Field(ge=0, description="what its ids and payloads take in memory, or less")
    first: int = Field(ge=1, description="the revision of the earliest change in it")
    last: int = Field(ge=1, description="the revision of the latest change in it")


class Dropped(Frozen):
    """A segment that counts no more, kept for a while for those who are reading it.

    Or a name of none: with the mark of a deletion, by which that is known if it comes again.
    """

    name: str
    at: datetime


class Revision(Frozen):
    """`collections/<name>/revisions/<n>.json`: whoever makes revision n + 1 first has made it.

    `change` is a name of its own for each attempt to make one, and `parent` is that of the revision
    before: so it can be told whether what comes next was built on what one wrote.
    """

    format: Literal[1] = 1
    name: CollectionName
    revision: int = Field(ge=1)
    change: str
    parent: str | None
    born: int = Field(ge=1, description="the revision that created it, again if it was deleted")
    model: ModelName
    owner: str | None = Field(description="None: whoever may ask at all may ask for it")
    feature_type: FeatureType
    created_at: datetime
    changed_at: datetime
    deleted: bool = False
    frees_name: bool = Field(
        default=False,
        description="the sweep's mark: nothing follows it, and all revisions are being removed",
    )
    segments: tuple[Segment, ...] = Field(default=(), description="in the order of their changes")
    dropped: tuple[Dropped, ...] = ()
    purged: int = Field(
        default=0,
        description="removals up to this revision are gone: who has seen fewer must read everything",
    )


# Of what is asked once more by somebody who was overtaken; older ones are swept.
KEPT_REVISIONS = 32
_ATTEMPTS = 40
_LONGEST_PAUSE_SECONDS = 0.25

Change = Callable[[Revision | None], Revision]


class CollectionBusy(WorkerError):
    """Others were quicker, many times in a row. Trying again can help."""

    retry_can_help = True


def collection_names(store: ObjectStore) -> list[str]:
    """Also of those that were deleted, until their names are freed."""
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
    while numbers := revision_numbers(store, name):
        try:
            found = read_revision(store, name, numbers[-1])
        except ObjectNotFound:
            continue  # since it was listed so many were made that it was swept
        return found if _has_its_parent(store, found, numbers) else None
    return None


def _has_its_parent(store: ObjectStore, revision: Revision, numbers: Sequence[int]) -> bool:
    """Not so what a writer made that slept until the name was freed: nobody counts it."""
    before = revision.revision - 1
    if revision.parent is None or before in numbers:
        return True
    try:  # A listing is not of one moment.
        store.size(layout.collection_revision(revision.name, before))
    except ObjectNotFound:
        return False
    return True


def highest_freed(store: ObjectStore) -> int:
    """No revision that was removed with its name is later than this; 0 where none was."""
    prefix = layout.collection_numbers()
    return max((int(key.removeprefix(prefix)) for key in store.keys(prefix)), default=0)


def free(store: ObjectStore, mark: Revision) -> int:
    """Remove all revisions up to the sweep's mark, itself last. How many. Anybody may do it, twice."""
    numbers = [each for each in revision_numbers(store, mark.name) if each <= mark.revision]
    for number in numbers:
        store.delete(layout.collection_revision(mark.name, number))
    return len(numbers)


def read_revision(store: ObjectStore, name: str, number: int) -> Revision:
    """Raises ObjectNotFound, InvalidVersion."""
    key = layout.collection_revision(name, number)
    try:
        return Revision.model_validate_json(store.read(key))
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, wrong["loc"])) or "all of it"
        raise InvalidVersion(f"{key} cannot be read ({place}: {wrong['msg']})") from error


def commit(store: ObjectStore, name: str, change: Change, mark: str | None = None) -> Revision:
    """Make the next revision. Raises CollectionBusy, StorageUnavailable, and what `change` raises.

    `change` gives the content; revision, change and parent are filled in here, and when it was born
    if it is the first. It must be harmless to make twice: where it cannot be told whether a change
    arrived, it is made again. `mark`: of the request that it is made for, see `repeats.py`.
    """
    mark = mark or new_mark()
    for attempt in range(_ATTEMPTS):
        head = newest(store, name)
        if head is not None and head.frees_name:
            free(store, head)  # Whoever began may have died.
            continue
        wanted = _numbered(store, change(head), head, marked(mark))
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


def _numbered(
    store: ObjectStore, content: Revision, head: Revision | None, change: str
) -> Revision:
    if head is None:
        # Read after it was seen that there is none: whoever frees a name has written it before.
        number = highest_freed(store) + 1
        fields = {"revision": number, "born": number, "parent": None, "change": change}
    else:
        fields = {"revision": head.revision + 1, "parent": head.change, "change": change}
    return content.model_copy(update=fields)


def _counts(store: ObjectStore, made: Revision) -> bool:
    """Whether what was written is part of the history.

    Old numbers are swept. A writer that slept since it looked could take such a number once more,
    far behind what counts by now, and nobody would ever read what it wrote.
    """
    numbers = revision_numbers(store, made.name)
    if numbers[-1:] == [made.revision]:
        return _has_its_parent(store, made, numbers)
    try:
        following = read_revision(store, made.name, made.revision + 1)
    except ObjectNotFound:
        return False
    return following.parent == made.change
