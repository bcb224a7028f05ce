"""Files sent in parts. One that broke off, by a crash of ours or theirs, goes on where it stood.

Nothing is kept on this side: the Idempotency-Key of an upload is made from the file's name and SHA-256,
so the same bytes again are answered with the upload that was begun. Which parts have arrived is for the
service to say; each is compared by its digest.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path

import httpx

from cmcl.errors import CmclError, InvalidArgument
from cmcl.flow.api import Api, read, segment, unreachable
from cmcl.flow.effects import Exchange, Flow, Pause, SendFile, Side, send_file, work
from cmcl.types import Upload, UploadPart, UploadProgress

_PART_BYTES = 16 * 2**20
# As many as an object store takes.
_MOST_PARTS = 10_000
# Begun and lost again (expired, used, aborted) within a day.
_MOST_BEGINNINGS = 50
_USABLE = frozenset({"open", "completing", "complete"})
# The service reads the whole file once more; a request that takes longer is looked after.
_LOOK_SECONDS = 1.0
_LONGEST_LOOK_SECONDS = 1800.0
# The service takes a few parts at a time, and one of 16 MiB may come over a slow line.
_LONGEST_TURN_SECONDS = 1800.0


@dataclass(frozen=True)
class Part:
    """A stretch of the file; numbers begin at 1."""

    number: int
    start: int
    size: int


@dataclass(frozen=True)
class LocalFile:
    """A file as it was when it was first looked at."""

    path: Path
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> "LocalFile":
        """Raises InvalidArgument for one that cannot be sent."""
        try:
            found = path.stat()
        except OSError as error:
            raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from error
        if not path.is_file() or not found.st_size:
            raise InvalidArgument(
                f"{path} cannot be sent: it is {'empty' if path.is_file() else 'no file'}"
            )
        return cls(path.resolve(), found.st_size, found.st_mtime_ns)

    def parts(self, upload: Upload) -> Iterator[Part]:
        """All of it, in parts of the permitted sizes."""
        size = max(_PART_BYTES, upload.part_bytes_min, -(-self.size // _MOST_PARTS))
        size = min(size, upload.part_bytes_max)
        for index, start in enumerate(range(0, self.size, size)):
            yield Part(index + 1, start, min(size, self.size - start))

    def read(self, part: Part) -> bytes:
        """One part. Raises CmclError if somebody has written to the file since."""
        with self.path.open("rb") as file:
            file.seek(part.start)
            data = file.read(part.size)
        if len(data) != part.size or self.path.stat().st_mtime_ns != self.changed_ns:
            raise CmclError(f"{self.path} was changed while it was being sent; send it again")
        return data


def upload(
    api: Api,
    path: str | PathLike[str],
    on_progress: Callable[[UploadProgress], None] | None = None,
) -> Flow[Upload]:
    """Send a file; the answer's `uri` can stand in a dataset. The same file again is sent once.

    It is read twice: its digest is announced, and the service takes nothing else for it.
    """
    file = yield from _local(path)
    digest = yield from _whole_digest(file)
    begun = yield from _begin(api, file, digest)
    there = {part.number: part.sha256 for part in begun.parts}
    for part in file.parts(begun):
        yield from _send_part(api, begun, file, part, there.get(part.number))
        if on_progress is not None:
            on_progress(UploadProgress(file.path, part.start + part.size, file.size))
    complete = begun if begun.state == "complete" else (yield from _complete(api, begun))
    _check_digest(file, digest, complete)
    return complete


def upload_direct(api: Api, path: str | PathLike[str]) -> Flow[Upload]:
    """Send a file straight to the bucket, where the service's store is one; it is read twice.

    The signed address takes these very bytes alone, so the digest comes first. One that broke off
    begins anew: for large files over bad lines, `upload` is the better choice.
    """
    file = yield from _local(path)
    digest = yield from _whole_digest(file)
    body = {"filename": file.path.name, "bytes": file.size, "direct": True, "sha256": digest}
    begun = yield from api.post(Upload, "/v1/uploads", body)
    if begun.presigned is None:
        begun = yield from api.post(Upload, f"{_path(begun.id)}/presign")
    signed = begun.presigned
    if signed is None:
        raise CmclError(f"the service gave no address for upload {begun.id}")
    # The length is part of what was signed; without it, the body would be sent in chunks.
    headers = {**signed.headers, "content-length": str(file.size)}
    request = Exchange(signed.method, signed.url, Side.ELSEWHERE, headers=headers)
    yield from _send_whole(request, file)
    return (yield from _complete(api, begun))


def upload_state(api: Api, upload: str) -> Flow[Upload]:
    """Where an upload stands, with the parts that have arrived."""
    return api.get(Upload, _path(upload))


def abort_upload(api: Api, upload: str) -> Flow[None]:
    """Remove an upload with all that was sent."""
    return api.delete(_path(upload))


def _local(path: str | PathLike[str]) -> Flow[LocalFile]:
    return work(partial(LocalFile.of, Path(path)))


def _begin(api: Api, file: LocalFile, digest: str) -> Flow[Upload]:
    """The upload of these bytes that was begun before, where it still can be used; else a new one."""
    body = {"filename": file.path.name, "bytes": file.size, "sha256": digest}
    key = _key(file.path.name, digest)
    for beginning in range(_MOST_BEGINNINGS):
        begun = yield from api.post(Upload, "/v1/uploads", body, f"{key}-{beginning}")
        try:
            now = yield from upload_state(api, begun.id)
        except CmclError as error:
            if error.status != httpx.codes.NOT_FOUND:
                raise
            continue
        if now.state in _USABLE:
            return now
    return (yield from api.post(Upload, "/v1/uploads", body))


def _key(name: str, digest: str) -> str:
    """The same for the same bytes; the name is told with them, and a key is good for one request."""
    told = f"{name}\0{digest}".encode("utf-8", "surrogateescape")
    return f"upload-{hashlib.sha256(told).hexdigest()}"


def _complete(api: Api, upload: Upload) -> Flow[Upload]:
    """Have the file made of its parts; somebody else may be at it, or our own lost request."""
    try:
        return (yield from api.post(Upload, f"{_path(upload.id)}/complete"))
    except CmclError as error:
        if error.status not in (httpx.codes.CONFLICT, 0):
            raise
        deadline = api.clock() + _LONGEST_LOOK_SECONDS
        now = yield from upload_state(api, upload.id)
        while now.state == "completing" and api.clock() < deadline:
            yield Pause(_LOOK_SECONDS)
            now = yield from upload_state(api, upload.id)
        if now.state != "complete":
            raise
        return now


def _send_part(
    api: Api, upload: Upload, file: LocalFile, part: Part, digest_there: str | None
) -> Flow[None]:
    """Send a part, unless the same bytes have arrived already."""
    if upload.state != "open":
        return
    data = yield from _read(file, part)
    digest = hashlib.sha256(data)
    if digest.hexdigest() == digest_there:
        return
    told = base64.b64encode(digest.digest()).decode()
    request = Exchange(
        "PUT",
        f"{_path(upload.id)}/parts/{part.number}",
        headers={
            "content-type": "application/octet-stream",
            "content-digest": f"sha-256=:{told}:",
        },
        content=data,
    )
    arrived = read(UploadPart, (yield from _send_in_turn(api, request)))
    if arrived.sha256 != digest.hexdigest():
        raise CmclError(f"part {part.number} of {file.path} arrived damaged; send it again")


def _send_in_turn(api: Api, request: Exchange) -> Flow[httpx.Response]:
    """Send it again, however often, for as long as the service has too much to do."""
    deadline = api.clock() + _LONGEST_TURN_SECONDS
    while True:
        try:
            return (yield from api.send(request))
        except CmclError as error:
            pause = max(_LOOK_SECONDS, error.retry_after or 0.0)
            if error.status != httpx.codes.TOO_MANY_REQUESTS or api.clock() + pause > deadline:
                raise
        yield Pause(pause)


def _send_whole(request: Exchange, file: LocalFile) -> Flow[None]:
    try:
        response = yield from send_file(SendFile(request, file.path))
    except httpx.TransportError as error:
        raise unreachable(request.side, error) from error
    if not response.is_success:
        status = response.status_code
        raise CmclError(f"the bucket refused {file.path} with HTTP {status}", status)


def _whole_digest(file: LocalFile) -> Flow[str]:
    def digest() -> str:
        with file.path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    try:
        return (yield from work(digest))
    except OSError as error:
        raise CmclError(f"{file.path} cannot be read: {error.strerror}") from error


def _read(file: LocalFile, part: Part) -> Flow[bytes]:
    try:
        return (yield from work(partial(file.read, part)))
    except OSError as error:
        raise CmclError(f"{file.path} cannot be read: {error.strerror}") from error


def _check_digest(file: LocalFile, digest: str, complete: Upload) -> None:
    if complete.sha256 not in (None, digest):
        raise CmclError(
            f"{file.path} was changed while it was being sent, or arrived damaged; abort upload "
            f"{complete.id} and send it again"
        )


def _path(upload: str) -> str:
    return f"/v1/uploads/{segment(upload)}"
