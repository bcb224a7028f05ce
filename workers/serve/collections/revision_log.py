"""The log of a collection's revisions, written by compare-and-set on the next number.

A change is a function from the newest revision to the next one. If another writer created that number first, the
change is applied again to what it created. There is no lock that a dead writer could leave behind.

A name that was deleted long ago is freed (`maintenance.py`): all its revisions are removed, up to a mark that
nothing is built on. A collection that takes the name again begins above all numbers that were ever removed, so that
a replica or a writer that missed this cannot confuse the two.

Idempotency: a write that is sent twice is done once. A proxy or a client sends a request again whose replica died,
or seemed to, before it answered. By then the write may be in the store, and others may have written after it:
repeated, it would undo their changes. So what a write creates has the mark of its request in its name, and a write
looks for its mark first. Marks last as long as the names: until the name of the collection is freed, or an hour
after the write was merged with others, or the deletion was made.
"""

import hashlib
import random
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from cmcl.contract.api.endpoint import FeatureType
from cmcl.contract.errors import InvalidVersion, ObjectExists, ObjectNotFound, WorkerError
from cmcl.contract.modality import NAME_PATTERN, Frozen, ModelName, Sha256
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore

_MARK_DIGITS = 16
_NAME_DIGITS = 32

CollectionName = Annotated[
    str, StringConstraints(pattern=NAME_PATTERN), Field(examples=["street-photos"])
]

# For writers that were superseded and retry; older ones are swept.
KEPT_REVISIONS = 32
_ATTEMPTS = 40
_LONGEST_PAUSE_SECONDS = 0.25


def mark_of(*request: bytes) -> str:
    """Return the mark of a request from what identifies it: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in request:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:_MARK_DIGITS]


def new_mark() -> str:
    """Return a random mark, for a request without an idempotency key."""
    return secrets.token_hex(_MARK_DIGITS // 2)


def marked(mark: str) -> str:
    """Return a unique name with this mark, 32 hexadecimal digits: two attempts may run at the same time."""
    return mark + secrets.token_hex((_NAME_DIGITS - _MARK_DIGITS) // 2)


def is_marked(name: str, mark: str) -> bool:
    """Whether the name has this mark."""
    return name.startswith(mark)


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
    """A segment that no longer counts, kept for a while for readers.

    Or a name without a segment, with the mark of a deletion, which is recognised by it if it is sent again.
    """

    name: str
    at: datetime


class Revision(Frozen):
    """`collections/<name>/revisions/<n>.json`; the first writer of revision n + 1 wins.

    `change` is a unique name of each attempt, and `parent` is that of the revision before: they show whether the
    next revision was built on this one.
    """

    format: Literal[1] = 1
    name: CollectionName
    revision: int = Field(ge=1)
    change: str
    parent: str | None
    born: int = Field(ge=1, description="the revision that created it, again if it was deleted")
    model: ModelName
    owner: str | None = Field(
        description="None: for all callers where no keys are required, and for the operator"
    )
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


Change = Callable[[Revision | None], Revision]


class CollectionBusy(WorkerError):
    """Other writers were faster, many times in a row. Trying again can help."""

    retry_can_help = True


def collection_names(store: ObjectStore) -> list[str]:
    """Return all names, of deleted collections as well until they are freed."""
    return store.folders(layout.collections())


def newest_number(store: ObjectStore, name: str) -> int:
    """Return the number of the newest revision; 0 where there is none."""
    numbers = revision_numbers(store, name)
    return numbers[-1] if numbers else 0


def revision_numbers(store: ObjectStore, name: str) -> list[int]:
    """Return the numbers that are stored, the oldest first."""
    prefix = layout.collection_revisions(name)
    return [int(key.removeprefix(prefix).removesuffix(".json")) for key in store.keys(prefix)]


def newest(store: ObjectStore, name: str) -> Revision | None:
    """Return the newest revision, also of a deleted collection. Raises InvalidVersion."""
    while numbers := revision_numbers(store, name):
        try:
            found = read_revision(store, name, numbers[-1])
        except ObjectNotFound:
            continue  # It was swept since it was listed.
        return found if _has_its_parent(store, found, numbers) else None
    return None


def _has_its_parent(store: ObjectStore, revision: Revision, numbers: Sequence[int]) -> bool:
    """Whether it is part of the log: not what a writer created that slept until the name was freed."""
    before = revision.revision - 1
    if revision.parent is None or before in numbers:
        return True
    try:  # A listing is not atomic.
        store.size(layout.collection_revision(revision.name, before))
    except ObjectNotFound:
        return False
    return True


def highest_freed(store: ObjectStore) -> int:
    """Return the highest number of a revision that was removed with its name; 0 where none was."""
    prefix = layout.collection_numbers()
    return max((int(key.removeprefix(prefix)) for key in store.keys(prefix)), default=0)


def free(store: ObjectStore, mark: Revision) -> int:
    """Remove all revisions up to the sweep's mark, itself last. Returns how many. Idempotent."""
    numbers = [each for each in revision_numbers(store, mark.name) if each <= mark.revision]
    for number in numbers:
        store.delete(layout.collection_revision(mark.name, number))
    return len(numbers)


def read_revision(store: ObjectStore, name: str, number: int) -> Revision:
    """Read one revision. Raises ObjectNotFound, InvalidVersion."""
    key = layout.collection_revision(name, number)
    try:
        return Revision.model_validate_json(store.read(key))
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, wrong["loc"])) or "all of it"
        raise InvalidVersion(f"{key} cannot be read ({place}: {wrong['msg']})") from error


def commit(store: ObjectStore, name: str, change: Change, mark: str | None = None) -> Revision:
    """Write the next revision. Raises CollectionBusy, StorageUnavailable, and what `change` raises.

    `change` returns the content; revision, change, parent and, for the first, born are filled in here. It must be
    idempotent: where it is unknown whether a change arrived, it is made again. `mark`: of the request, for
    idempotency.
    """
    mark = mark or new_mark()
    for attempt in range(_ATTEMPTS):
        head = newest(store, name)
        if head is not None and head.frees_name:
            free(store, head)  # The sweep that began may have died.
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
    raise CollectionBusy(f"collection {name!r}: another writer was first {_ATTEMPTS} times")


def _numbered(
    store: ObjectStore, content: Revision, head: Revision | None, change: str
) -> Revision:
    if head is None:
        # Read after the log was found empty: a sweep that frees a name has written it before.
        number = highest_freed(store) + 1
        fields = {"revision": number, "born": number, "parent": None, "change": change}
    else:
        fields = {"revision": head.revision + 1, "parent": head.change, "change": change}
    return content.model_copy(update=fields)


def _counts(store: ObjectStore, made: Revision) -> bool:
    """Whether what was written is part of the log.

    Old numbers are swept. A writer that slept since it read the log could write such a number again, far behind the
    present ones, where it is never read.
    """
    numbers = revision_numbers(store, made.name)
    if numbers[-1:] == [made.revision]:
        return _has_its_parent(store, made, numbers)
    try:
        following = read_revision(store, made.name, made.revision + 1)
    except ObjectNotFound:
        return False
    return following.parent == made.change
