"""Completes an upload: claim it, write the file, check every byte, mark it complete.

Each attempt writes its own object, so a slow attempt that was presumed dead is harmless; the row says
which object is the file. An attempt that fails can be repeated.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy import Connection

from cmcl.contract.errors import ObjectNotFound, StorageUnavailable
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.s3 import SMALLEST_PART
from service.context import Context
from service.core.errors import Conflict, FieldProblem
from service.core.principal import Principal
from service.database.queries import uploads
from service.database.rows import PartRow, UploadRow
from service.datasets.uploads import existing, visible

logger = logging.getLogger(__name__)

# Lease for writing and reading the file, plus time for its size; after a crash the next attempt waits
# this long. If it were too short, each attempt would overtake the previous one and none would succeed.
CLAIM = timedelta(minutes=5)
_SLOWEST_BYTES_PER_SECOND = 8 << 20
_NAMED_AT_MOST = 10


@dataclass(frozen=True)
class _Source:
    """An object and its expected contents."""

    key: str
    part: PartRow


@dataclass(frozen=True)
class _Work:
    """An attempt to complete an upload, with its sources."""

    upload: UploadRow
    sources: tuple[_Source, ...]

    @property
    def target(self) -> str:
        return layout.upload_file(self.upload.id, self.upload.attempt)


@dataclass(frozen=True)
class _Digests:
    """Digests of a whole object and of the parts that it consists of."""

    whole: str
    pieces: list[str]
    bytes: int


def complete(context: Context, upload: str, principal: Principal) -> UploadRow:
    """Complete the upload; idempotent. Takes as long as reading the file.

    Raises NotFound; Conflict if parts are missing, lost or do not match, or while another request
    is completing it.
    """
    with context.database.write() as connection:
        found = visible(uploads.lock(connection, upload), upload, principal, context)
        if found.state == "complete":
            return found
        work = _claim(connection, found, context)
    try:
        digest = _write_file(context, work)
    except Exception:
        _remove(context.store, [work.target])
        with context.database.write() as connection:
            uploads.reopen(connection, work.upload)
        raise
    with context.database.write() as connection:
        if not uploads.set_complete(connection, work.upload, digest, context.clock()):
            raise Conflict(f"upload {upload} changed concurrently; read it and try again")
        done = existing(uploads.find(connection, upload), upload)
    _remove(context.store, [source.key for source in work.sources])
    return done


def _claim(connection: Connection, found: UploadRow, context: Context) -> _Work:
    now = context.clock()
    if found.lease_until is not None and found.lease_until > now:
        raise Conflict(f"upload {found.id} is being completed; try again in a moment")
    sources = _sources(connection, found)
    until = now + CLAIM + timedelta(seconds=found.bytes / _SLOWEST_BYTES_PER_SECOND)
    uploads.claim(connection, found, until)
    claimed = replace(found, state="completing", attempt=found.attempt + 1, lease_until=until)
    return _Work(claimed, sources)


def _sources(connection: Connection, upload: UploadRow) -> tuple[_Source, ...]:
    """The objects that make up the file. Raises Conflict if they are incomplete."""
    if upload.direct and upload.sha256 is not None:
        whole = PartRow(1, upload.bytes, upload.sha256)
        return (_Source(layout.upload_direct(upload.id), whole),)
    parts = uploads.parts(connection, upload.id)
    _check_numbers(parts)
    _check_sizes(parts, upload)
    return tuple(
        _Source(layout.upload_part(upload.id, part.number, part.sha256), part) for part in parts
    )


def _check_numbers(parts: Sequence[PartRow]) -> None:
    """The numbers must be consecutive from 1."""
    received = [part.number for part in parts]
    missing = sorted(set(range(1, max(received, default=0) + 1)) - set(received))
    if missing:
        message = f"missing: {_listed(missing)}"
        raise Conflict("some parts have not arrived", FieldProblem("parts", message))


def _check_sizes(parts: Sequence[PartRow], upload: UploadRow) -> None:
    small = [part.number for part in parts[:-1] if part.bytes < SMALLEST_PART]
    if small:
        message = f"every part but the last has at least {SMALLEST_PART} bytes; smaller: "
        message += _listed(small)
        raise Conflict("some parts are too small", FieldProblem("parts", message))
    total = sum(part.bytes for part in parts)
    if total != upload.bytes:
        message = f"the parts have {total} bytes; the upload was created with {upload.bytes}"
        raise Conflict(message, FieldProblem("bytes", message, total))


def _write_file(context: Context, work: _Work) -> str:
    """Write the file, read it back and check it. Returns its digest."""
    if work.upload.direct:
        _check_arrived(context, work)
    try:
        context.store.compose([source.key for source in work.sources], work.target)
    except ObjectNotFound as error:
        raise _lost(context, work) from error
    sizes = [source.part.bytes for source in work.sources]
    found = _digests(context.store.stream(work.target), sizes)
    _check_digests(context, work, found)
    return found.whole


def _check_arrived(context: Context, work: _Work) -> None:
    """Check the size of a direct upload before copying."""
    try:
        size = context.store.size(work.sources[0].key)
    except ObjectNotFound as error:
        raise Conflict("nothing was sent to the signed URL yet") from error
    if size != work.upload.bytes:
        message = f"{size} bytes were sent; the upload was created with {work.upload.bytes}"
        raise Conflict(f"{message}; send it again", FieldProblem("bytes", message, size))


def _lost(context: Context, work: _Work) -> Conflict:
    """Forget parts whose objects are missing, so that they can be sent again."""
    gone = [source.part for source in work.sources if not _is_there(context.store, source.key)]
    return _missing_parts(context, work, gone, "lost")


def _check_digests(context: Context, work: _Work, found: _Digests) -> None:
    if found.bytes != work.upload.bytes:
        raise StorageUnavailable(f"{work.target} has {found.bytes} bytes, not {work.upload.bytes}")
    pairs = zip(work.sources, found.pieces, strict=True)
    bad = [source.part for source, digest in pairs if digest != source.part.sha256]
    if bad and not work.upload.direct:
        raise _missing_parts(context, work, bad, "damaged")
    if work.upload.sha256 not in (None, found.whole):
        message = f"the SHA-256 is {found.whole}, expected {work.upload.sha256}"
        again = "send the file again" if work.upload.direct else "send the parts that differ again"
        raise Conflict(f"{message}; {again}", FieldProblem("sha256", message, found.whole))


def _missing_parts(context: Context, work: _Work, parts: Sequence[PartRow], what: str) -> Conflict:
    with context.database.write() as connection:
        for part in parts:
            uploads.forget_part(connection, work.upload.id, part)
    message = f"{what} in object storage, send again: {_listed([part.number for part in parts])}"
    return Conflict(f"some parts were {what}", FieldProblem("parts", message))


def _digests(chunks: Iterable[bytes], sizes: Sequence[int]) -> _Digests:
    """Digests of the whole and of pieces of these sizes, in one pass."""
    whole, pieces = hashlib.sha256(), [hashlib.sha256() for _ in sizes]
    total, index, left = 0, 0, sizes[0]
    for chunk in chunks:
        whole.update(chunk)
        total += len(chunk)
        rest = memoryview(chunk)
        while rest and index < len(sizes):
            pieces[index].update(rest[:left])
            rest, left = rest[left:], left - len(rest[:left])
            if left == 0:
                index += 1
                left = sizes[index] if index < len(sizes) else 0
    return _Digests(whole.hexdigest(), [piece.hexdigest() for piece in pieces], total)


def _is_there(store: ObjectStore, key: str) -> bool:
    try:
        store.size(key)
    except ObjectNotFound:
        return False
    return True


def _remove(store: ObjectStore, keys: Sequence[str]) -> None:
    """Delete objects; if the store does not respond, they are deleted with the upload later."""
    try:
        for key in keys:
            store.delete(key)
    except StorageUnavailable as error:
        logger.warning("objects of an upload could not be deleted yet: %s", error)


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:_NAMED_AT_MOST])
    more = len(numbers) - _NAMED_AT_MOST
    return f"part {shown}" + (f" and {more} more" if more > 0 else "")
