"""Read the results of a preparation: the manifest of the dataset, and the rows that were left out."""

from dataclasses import dataclass

from pydantic import ValidationError

from cmcl.contract.dataset import DatasetManifest, RejectedRow
from cmcl.contract.errors import InvalidVersion, ObjectNotFound
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.object_store import ObjectStore

_READ_BYTES = 256 << 10
# A line that is longer than this was not written by the preparation of a dataset.
_LONGEST_LINE = 1 << 20


def read_dataset_manifest(store: ObjectStore, dataset: str) -> DatasetManifest | None:
    """The manifest of a verified dataset; None before that. Raises InvalidVersion if it is damaged."""
    key = layout.dataset_manifest(dataset)
    try:
        return read_document(store, key, DatasetManifest)
    except ObjectNotFound:
        return None


@dataclass(frozen=True)
class RejectedPart:
    """Some lines of the list of rejected rows. `next_offset`: where the next one begins; None at the end."""

    rows: list[RejectedRow]
    next_offset: int | None


def read_rejected(store: ObjectStore, dataset: str, offset: int, limit: int) -> RejectedPart:
    """Up to `limit` rejected rows from the line that begins at `offset`, in bytes. Empty without a list.

    Raises InvalidVersion if it is damaged, or no line begins there.
    """
    key = layout.rejected_rows(dataset)
    try:
        data = _lines_at(store, key, offset)
    except ObjectNotFound:
        return RejectedPart([], None)
    lines = data.splitlines(keepends=True)[:limit]
    try:
        rows = [RejectedRow.model_validate_json(line) for line in lines]
    except ValidationError as error:
        raise InvalidVersion(f"{key} cannot be read at byte {offset}: {error}") from error
    following = offset + sum(map(len, lines))
    is_over = following >= store.size(key)
    return RejectedPart(rows, None if is_over else following)


def _lines_at(store: ObjectStore, key: str, offset: int) -> bytes:
    """Whole lines from `offset` on, at least one unless the object ends there. Raises ObjectNotFound."""
    length = _READ_BYTES
    while length <= _LONGEST_LINE:
        data = store.read_range(key, offset, offset + length)
        if len(data) < length:
            return data
        if b"\n" in data:
            return data[: data.rindex(b"\n") + 1]
        length *= 2
    raise InvalidVersion(f"{key} has a line of more than {_LONGEST_LINE} bytes at byte {offset}")
