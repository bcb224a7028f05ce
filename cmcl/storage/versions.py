"""Read and write versions: manifests that name blobs. Digests are verified on every read.

A blob has its digest as its name, so that writing it twice is harmless and versions share what is equal. Blobs are
written before the manifest that names them; `service.maintenance.gc` removes those that no manifest names.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from cmcl.contract.errors import (
    DigestMismatch,
    InvalidVersion,
    ObjectNotFound,
    VersionTaken,
)
from cmcl.contract.modality import FileEntry
from cmcl.contract.version import LivePointer, VersionManifest
from cmcl.storage import layout
from cmcl.storage.documents import document, parse_document, read_document, write_document
from cmcl.storage.object_store import ObjectStore, retry_unavailable

Hash = Callable[[bytes], str]
_CHUNK = 1 << 20
# Of the checksums of manifests: that of a version has the same bytes as that of its candidate.
_SUBJECT = layout.MANIFEST


class Hasher(Protocol):
    """The interface of hashlib and blake3."""

    def update(self, data: bytes | memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class Digests:
    """Digests of one file."""

    sha256: str
    blake3: str


def digests_of_file(path: Path) -> Digests:
    """Both digests of a local file, in one pass and constant memory."""
    # The control plane reads versions and has no blake3: it computes no digest of a shard.
    from blake3 import blake3

    hashers = hashlib.sha256(), blake3()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            for hasher in hashers:
                hasher.update(buffer[:size])
    return Digests(*(hasher.hexdigest() for hasher in hashers))


def entry_for(data: bytes) -> FileEntry:
    """The manifest's entry for these bytes."""
    return FileEntry(sha256=sha256_of(data), bytes=len(data))


def sha256_of(data: bytes) -> str:
    """SHA-256 of bytes in memory."""
    return hashlib.sha256(data).hexdigest()


def read_blob(store: ObjectStore, entry: FileEntry, hashed: Hash = sha256_of) -> bytes:
    """Read a blob. Raises ObjectNotFound; DigestMismatch if its bytes are not those of `entry`."""
    key = layout.blob(entry.sha256)
    data = store.read(key)
    if len(data) != entry.bytes or hashed(data) != entry.sha256:
        raise DigestMismatch(f"{store.uri}/{key} is not what its manifest promised (SHA-256)")
    return data


def stream_blob(store: ObjectStore, entry: FileEntry) -> Iterator[bytes]:
    """Yield a blob in chunks, giving way to other threads in between.

    The digest is verified after the last chunk: raises DigestMismatch then, or as soon as there are more
    bytes than in `entry`. Raises ObjectNotFound with the first one.
    """
    key, digest, found = layout.blob(entry.sha256), hashlib.sha256(), 0
    for chunk in store.stream(key):
        found += len(chunk)
        if found > entry.bytes:
            break
        digest.update(chunk)
        os.sched_yield()
        yield chunk
    if found != entry.bytes or digest.hexdigest() != entry.sha256:
        raise DigestMismatch(f"{store.uri}/{key} is not what its manifest promised (SHA-256)")


def considerate_sha256_of(data: bytes) -> str:
    """SHA-256 that yields the CPU after each piece, for replicas that serve requests at the same time.

    On a busy machine it takes several times as long.
    """
    digest = hashlib.sha256()
    with memoryview(data) as view:
        for begin in range(0, len(view), _CHUNK):
            digest.update(view[begin : begin + _CHUNK])
            os.sched_yield()
    return digest.hexdigest()


def read_candidate(store: ObjectStore, job: str, attempt: int) -> VersionManifest:
    """Read the manifest of an attempt's candidate. Raises ObjectNotFound, InvalidVersion."""
    key = layout.run_candidate(job, attempt)
    return parse_manifest(store.read(key), key)


def read_version(store: ObjectStore, model: str, version: int) -> VersionManifest:
    """Read the manifest of a published version. Raises ObjectNotFound, InvalidVersion."""
    key = layout.version_manifest(model, version)
    return parse_manifest(store.read(key), key)


def read_version_file(
    store: ObjectStore, manifest: VersionManifest, name: str, hashed: Hash = sha256_of
) -> bytes:
    """Read one file with `read_blob`.

    Raises ObjectNotFound, DigestMismatch; InvalidVersion if the version has no such file.
    """
    if name not in manifest.files:
        raise InvalidVersion(f"the manifest of version {manifest.version} names no {name}")
    return read_blob(store, manifest.files[name], hashed)


def heads_bytes(manifest: VersionManifest) -> int:
    """Bytes of the heads of a version, with conditioning and lifts."""
    return sum(manifest.files[name].bytes for name in layout.HEADS_FILES)


def read_memory_files(
    manifest: VersionManifest, read: Callable[[str], bytes]
) -> tuple[bytes, dict[tuple[str, str], bytes]]:
    """The files of a version's memory: that of no pair, and those with pooled moments. `read`: a file by its name."""
    pairs = {name: layout.pair_of(name) for name in manifest.files}
    return read(layout.MEMORY), {pair: read(name) for name, pair in pairs.items() if pair}


def write_blob(
    store: ObjectStore, data: bytes, known: Collection[FileEntry] = frozenset()
) -> FileEntry:
    """Write a blob, with retries, unless it is one of `known`, and return its entry. Raises StorageUnavailable.

    `known`: blobs of the version that this one starts from, which exists as long as it is continued. Any other blob
    is written, even if the store has it: it may be about to be removed because nothing names it.
    """
    entry = entry_for(data)
    if entry not in known:
        retry_unavailable(partial(store.put, layout.blob(entry.sha256), data))
    return entry


def write_candidate(store: ObjectStore, manifest: VersionManifest) -> None:
    """Write the manifest of a candidate, whose blobs are stored. It can be created only once.

    Raises ObjectExists; StorageUnavailable after retries.
    """
    key = layout.run_candidate(manifest.job, manifest.attempt)
    retry_unavailable(partial(store.create, key, document(manifest, _SUBJECT)))


def check_complete(store: ObjectStore, manifest: VersionManifest) -> None:
    """Check that what a version or candidate has of its own is stored: its files, and moments of new datasets.

    Raises InvalidVersion that names the first one that is missing or has another size. Readers verify digests.
    """
    missing = set(layout.VERSION_FILES) - set(manifest.files)
    if missing:
        raise InvalidVersion(f"the manifest names no {', '.join(sorted(missing))}")
    for name, entry in manifest.own.items():
        key = layout.blob(entry.sha256)
        try:
            found = store.size(key)
        except ObjectNotFound as error:
            raise InvalidVersion(f"{store.uri}/{key} ({name}) is missing") from error
        if found != entry.bytes:
            message = f"{store.uri}/{key} ({name}) has {found} bytes"
            raise InvalidVersion(f"{message}, its manifest says {entry.bytes}")


def check_number_is_free(store: ObjectStore, manifest: VersionManifest) -> None:
    """Raises VersionTaken if another version has this number, which must not be overwritten.

    That happens if the database was restored from a dump that is older than the bucket. A version with
    a damaged manifest may be overwritten.
    """
    try:
        there = read_version(store, manifest.model, manifest.version)
    except (ObjectNotFound, InvalidVersion):
        return
    if there.files != manifest.files:
        raise VersionTaken(
            f"object storage has another version {manifest.version} of {manifest.model} already, made by "
            f"job {there.job} at {there.created_at:%Y-%m-%d %H:%M:%S}Z: the database is older than the "
            "bucket; stop the service and rebuild the database (docs/disaster.md)"
        )


def publish_manifest(store: ObjectStore, manifest: VersionManifest) -> None:
    """Write the manifest of a version, whose blobs are stored. Idempotent. Raises VersionTaken."""
    check_number_is_free(store, manifest)
    key = layout.version_manifest(manifest.model, manifest.version)
    store.put(key, document(manifest, _SUBJECT))


def read_live(store: ObjectStore, model: str) -> LivePointer | None:
    """Read the live pointer; None before the first version. Raises InvalidVersion."""
    try:
        return read_document(store, layout.live_pointer(model), LivePointer)
    except ObjectNotFound:
        return None


def write_live(store: ObjectStore, model: str, pointer: LivePointer) -> None:
    """Write the live pointer, which replicas follow."""
    write_document(store, layout.live_pointer(model), pointer)


def remove_live(store: ObjectStore, model: str) -> None:
    """Remove the live pointer of a deleted model, so that replicas unload it."""
    store.delete(layout.live_pointer(model))


def digest_of_manifest(manifest: VersionManifest) -> str:
    """The digest under which the database records a manifest, which it has without a checksum."""
    return sha256_of(manifest.model_dump_json().encode())


def parse_manifest(data: bytes, key: str) -> VersionManifest:
    """Parse the manifest of a candidate or version. Raises InvalidVersion, also for that of another one."""
    found = parse_document(data, key, VersionManifest, _SUBJECT)
    theirs = layout.version_manifest(found.model, found.version)
    if key not in (theirs, layout.run_candidate(found.job, found.attempt)):
        label = f"version {found.version} of {found.model!r}"
        raise InvalidVersion(f"{key} is that of {label} (job {found.job}, attempt {found.attempt})")
    return found


def check_object(store: ObjectStore, key: str, entry: FileEntry) -> None:
    """Verify an object in constant memory. Raises InvalidVersion that names it."""
    digest, found = hashlib.sha256(), 0
    try:
        for chunk in store.stream(key):
            digest.update(chunk)
            found += len(chunk)
    except ObjectNotFound as error:
        raise InvalidVersion(f"{store.uri}/{key} is missing, its manifest names it") from error
    if found != entry.bytes:
        raise InvalidVersion(
            f"{store.uri}/{key} has {found} bytes, its manifest says {entry.bytes}"
        )
    if digest.hexdigest() != entry.sha256:
        raise InvalidVersion(f"{store.uri}/{key} is not what its manifest promised (SHA-256)")
