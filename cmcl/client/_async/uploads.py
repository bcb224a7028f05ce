"""Uploads of files in parts, which can be resumed after a crash of either side.

No local state is kept. The Idempotency-Key of an upload is derived from the file's name and SHA-256,
so the same bytes return the unfinished upload. The service lists the parts that have arrived, and
the client compares their digests.
"""

import base64
import hashlib
from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path

import httpx

from cmcl.client._async.session import Calls
from cmcl.client.concurrency import async_call
from cmcl.client.errors import CmclError
from cmcl.client.files import LocalFile, Part, check_digest, digest_of, upload_key
from cmcl.client.types import Upload, UploadPart, UploadProgress
from cmcl.client.wire import Request, Side, read, segment, unreachable

# Uploads of the same bytes within a day that expired, were used, or were aborted.
_MOST_BEGINNINGS = 50
_USABLE = frozenset({"open", "completing", "complete"})
# Completing reads the whole file; if the request times out, the state is polled.
_LOOK_SECONDS = 1.0
_LONGEST_LOOK_SECONDS = 1800.0
# The service accepts a few parts at a time, and a part of 16 MiB may take long on a slow line.
_LONGEST_TURN_SECONDS = 1800.0


class UploadCalls(Calls):
    """Calls about uploads."""

    async def upload(
        self,
        path: str | PathLike[str],
        on_progress: Callable[[UploadProgress], None] | None = None,
    ) -> Upload:
        """Upload a file. Datasets can name the result's `uri`. A repeated upload sends only missing parts.

        The file is read twice, because its digest is announced before the content is sent.
        """
        file = await async_call(partial(LocalFile.of, Path(path)))
        digest = await _digest(file)
        begun = await self._begin(file, digest)
        arrived = {part.number: part.sha256 for part in begun.parts}
        for part in file.parts(begun):
            if begun.state == "open":
                await self._send_part(begun, file, part, arrived.get(part.number))
            if on_progress is not None:
                on_progress(UploadProgress(file.path, part.start + part.size, file.size))
        complete = begun if begun.state == "complete" else await self._complete(begun)
        check_digest(file, digest, complete)
        return complete

    async def upload_direct(self, path: str | PathLike[str]) -> Upload:
        """Upload a file directly to the bucket, if the service's store is a bucket.

        The file is read twice, because the signed URL accepts only content with its digest. An
        interrupted upload starts again; use `upload` for large files on unreliable lines.
        """
        file = await async_call(partial(LocalFile.of, Path(path)))
        digest = await _digest(file)
        body = {"filename": file.path.name, "bytes": file.size, "direct": True, "sha256": digest}
        begun = await self._session.post(Upload, "/v1/uploads", body)
        if begun.presigned is None:
            begun = await self._session.post(Upload, f"{_path(begun.id)}/presign")
        signed = begun.presigned
        if signed is None:
            raise CmclError(
                f"the service returned no signed URL for upload {begun.id}; use `upload` instead"
            )
        # The length is part of the signature; without the header, the body would be chunked.
        headers = {**signed.headers, "content-length": str(file.size)}
        request = Request(signed.method, signed.url, Side.ELSEWHERE, headers=headers)
        await self._send_whole(request, file)
        return await self._complete(begun)

    async def upload_state(self, upload: str) -> Upload:
        """Return an upload with the parts that have arrived."""
        return await self._session.get(Upload, _path(upload))

    async def abort_upload(self, upload: str) -> None:
        """Delete an upload with its parts."""
        await self._session.delete(_path(upload))

    async def _begin(self, file: LocalFile, digest: str) -> Upload:
        """Return the unfinished upload of these bytes if it is usable, else a new one."""
        body = {"filename": file.path.name, "bytes": file.size, "sha256": digest}
        key = upload_key(file.path.name, digest)
        for beginning in range(_MOST_BEGINNINGS):
            begun = await self._session.post(Upload, "/v1/uploads", body, f"{key}-{beginning}")
            try:
                now = await self.upload_state(begun.id)
            except CmclError as error:
                if error.status != httpx.codes.NOT_FOUND:
                    raise
                continue
            if now.state in _USABLE:
                return now
        return await self._session.post(Upload, "/v1/uploads", body)

    async def _send_part(
        self, upload: Upload, file: LocalFile, part: Part, digest_there: str | None
    ) -> None:
        """Send a part, unless the same bytes have already arrived."""
        try:
            data = await async_call(partial(file.read, part))
        except OSError as error:
            raise CmclError(f"{file.path} cannot be read: {error.strerror}") from error
        digest = hashlib.sha256(data)
        if digest.hexdigest() == digest_there:
            return
        encoded = base64.b64encode(digest.digest()).decode()
        request = Request(
            "PUT",
            f"{_path(upload.id)}/parts/{part.number}",
            headers={
                "content-type": "application/octet-stream",
                "content-digest": f"sha-256=:{encoded}:",
            },
            content=data,
        )
        arrived = read(UploadPart, await self._send_in_turn(request))
        if arrived.sha256 != digest.hexdigest():
            raise CmclError(f"part {part.number} of {file.path} arrived damaged; send it again")

    async def _send_in_turn(self, request: Request) -> httpx.Response:
        """Retry a request while the service is busy (429), up to half an hour."""
        clock = self._session.clock
        deadline = clock.now() + _LONGEST_TURN_SECONDS
        while True:
            try:
                return await self._session.send(request)
            except CmclError as error:
                pause = max(_LOOK_SECONDS, error.retry_after or 0.0)
                if error.status != httpx.codes.TOO_MANY_REQUESTS or clock.now() + pause > deadline:
                    raise
            await clock.async_sleep(pause)

    async def _send_whole(self, request: Request, file: LocalFile) -> None:
        try:
            response = await self._session.send_file(request, file.path)
        except httpx.TransportError as error:
            raise unreachable(request.side, error) from error
        if not response.is_success:
            status = response.status_code
            raise CmclError(f"the bucket rejected {file.path} with HTTP {status}", status)

    async def _complete(self, upload: Upload) -> Upload:
        """Complete the upload. Waits if an earlier request, whose response was lost, is completing it."""
        try:
            return await self._session.post(Upload, f"{_path(upload.id)}/complete")
        except CmclError as error:
            if error.status not in (httpx.codes.CONFLICT, 0):
                raise
            clock = self._session.clock
            deadline = clock.now() + _LONGEST_LOOK_SECONDS
            now = await self.upload_state(upload.id)
            while now.state == "completing" and clock.now() < deadline:
                await clock.async_sleep(_LOOK_SECONDS)
                now = await self.upload_state(upload.id)
            if now.state != "complete":
                raise
            return now


async def _digest(file: LocalFile) -> str:
    try:
        return await async_call(partial(digest_of, file))
    except OSError as error:
        raise CmclError(f"{file.path} cannot be read: {error.strerror}") from error


def _path(upload: str) -> str:
    return f"/v1/uploads/{segment(upload)}"
