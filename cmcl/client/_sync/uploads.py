# Generated from cmcl/client/_async/uploads.py by `make docs`; edit that file.
"""Files sent in parts. An upload that broke off, by a crash of either side, is resumed.

Nothing is kept on this side: the Idempotency-Key of an upload is made from the file's name and
SHA-256, so the same bytes again return the upload that was begun. The service lists the parts that
have arrived; each is compared by its digest.
"""

import base64
import hashlib
from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path

import httpx

from cmcl.client._sync.session import Calls
from cmcl.client.answers import Upload, UploadPart, UploadProgress
from cmcl.client.concurrency import call
from cmcl.client.errors import CmclError
from cmcl.client.files import LocalFile, Part, check_digest, digest_of, upload_key
from cmcl.client.wire import Request, Side, read, segment, unreachable

# Begun and lost again (expired, used, aborted) within a day.
_MOST_BEGINNINGS = 50
_USABLE = frozenset({"open", "completing", "complete"})
# The service reads the whole file once more; a request that takes longer is polled.
_LOOK_SECONDS = 1.0
_LONGEST_LOOK_SECONDS = 1800.0
# The service takes a few parts at a time, and one of 16 MiB may come over a slow line.
_LONGEST_TURN_SECONDS = 1800.0


class UploadCalls(Calls):
    """Calls about files."""

    def upload(
        self,
        path: str | PathLike[str],
        on_progress: Callable[[UploadProgress], None] | None = None,
    ) -> Upload:
        """Send a file; the answer's `uri` can stand in a dataset. The same file again is sent once.

        The file is read twice: its digest is announced, and the service accepts nothing else.
        """
        file = call(partial(LocalFile.of, Path(path)))
        digest = _digest(file)
        begun = self._begin(file, digest)
        there = {part.number: part.sha256 for part in begun.parts}
        for part in file.parts(begun):
            if begun.state == "open":
                self._send_part(begun, file, part, there.get(part.number))
            if on_progress is not None:
                on_progress(UploadProgress(file.path, part.start + part.size, file.size))
        complete = begun if begun.state == "complete" else self._complete(begun)
        check_digest(file, digest, complete)
        return complete

    def upload_direct(self, path: str | PathLike[str]) -> Upload:
        """Send a file straight to the bucket, where the service's store is one; it is read twice.

        The signed address accepts only these bytes, so the digest comes first. An upload that broke
        off begins again: for large files over bad lines, use `upload`.
        """
        file = call(partial(LocalFile.of, Path(path)))
        digest = _digest(file)
        body = {"filename": file.path.name, "bytes": file.size, "direct": True, "sha256": digest}
        begun = self._session.post(Upload, "/v1/uploads", body)
        if begun.presigned is None:
            begun = self._session.post(Upload, f"{_path(begun.id)}/presign")
        signed = begun.presigned
        if signed is None:
            raise CmclError(f"the service gave no address for upload {begun.id}")
        # The length is part of what was signed; without it, the body would be sent in chunks.
        headers = {**signed.headers, "content-length": str(file.size)}
        request = Request(signed.method, signed.url, Side.ELSEWHERE, headers=headers)
        self._send_whole(request, file)
        return self._complete(begun)

    def upload_state(self, upload: str) -> Upload:
        """An upload with the parts that have arrived."""
        return self._session.get(Upload, _path(upload))

    def abort_upload(self, upload: str) -> None:
        """Delete an upload with all its parts."""
        self._session.delete(_path(upload))

    def _begin(self, file: LocalFile, digest: str) -> Upload:
        """The upload of these bytes that was begun before, if it can still be used; else a new one."""
        body = {"filename": file.path.name, "bytes": file.size, "sha256": digest}
        key = upload_key(file.path.name, digest)
        for beginning in range(_MOST_BEGINNINGS):
            begun = self._session.post(Upload, "/v1/uploads", body, f"{key}-{beginning}")
            try:
                now = self.upload_state(begun.id)
            except CmclError as error:
                if error.status != httpx.codes.NOT_FOUND:
                    raise
                continue
            if now.state in _USABLE:
                return now
        return self._session.post(Upload, "/v1/uploads", body)

    def _send_part(
        self, upload: Upload, file: LocalFile, part: Part, digest_there: str | None
    ) -> None:
        """Send a part, unless the same bytes have arrived already."""
        try:
            data = call(partial(file.read, part))
        except OSError as error:
            raise CmclError(f"{file.path} cannot be read: {error.strerror}") from error
        digest = hashlib.sha256(data)
        if digest.hexdigest() == digest_there:
            return
        told = base64.b64encode(digest.digest()).decode()
        request = Request(
            "PUT",
            f"{_path(upload.id)}/parts/{part.number}",
            headers={
                "content-type": "application/octet-stream",
                "content-digest": f"sha-256=:{told}:",
            },
            content=data,
        )
        arrived = read(UploadPart, self._send_in_turn(request))
        if arrived.sha256 != digest.hexdigest():
            raise CmclError(f"part {part.number} of {file.path} arrived damaged; send it again")

    def _send_in_turn(self, request: Request) -> httpx.Response:
        """Send a request again for as long as the service is busy (429), up to half an hour."""
        clock = self._session.clock
        deadline = clock.now() + _LONGEST_TURN_SECONDS
        while True:
            try:
                return self._session.send(request)
            except CmclError as error:
                pause = max(_LOOK_SECONDS, error.retry_after or 0.0)
                if error.status != httpx.codes.TOO_MANY_REQUESTS or clock.now() + pause > deadline:
                    raise
            clock.sleep(pause)

    def _send_whole(self, request: Request, file: LocalFile) -> None:
        try:
            response = self._session.send_file(request, file.path)
        except httpx.TransportError as error:
            raise unreachable(request.side, error) from error
        if not response.is_success:
            status = response.status_code
            raise CmclError(f"the bucket refused {file.path} with HTTP {status}", status)

    def _complete(self, upload: Upload) -> Upload:
        """Have the file assembled; wait where this is done already, by a request whose answer was lost."""
        try:
            return self._session.post(Upload, f"{_path(upload.id)}/complete")
        except CmclError as error:
            if error.status not in (httpx.codes.CONFLICT, 0):
                raise
            clock = self._session.clock
            deadline = clock.now() + _LONGEST_LOOK_SECONDS
            now = self.upload_state(upload.id)
            while now.state == "completing" and clock.now() < deadline:
                clock.sleep(_LOOK_SECONDS)
                now = self.upload_state(upload.id)
            if now.state != "complete":
                raise
            return now


def _digest(file: LocalFile) -> str:
    try:
        return call(partial(digest_of, file))
    except OSError as error:
        raise CmclError(f"{file.path} cannot be read: {error.strerror}") from error


def _path(upload: str) -> str:
    return f"/v1/uploads/{segment(upload)}"
