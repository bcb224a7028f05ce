"""Uploads: files that the service cannot read by address, each sent as one body.

No local state is kept. The Idempotency-Key of an upload is derived from the file's name and SHA-256, so the same bytes
are the same upload, and are not sent twice.
"""

from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path

import httpx

from cmcl.client._async.session import Calls
from cmcl.client.concurrency import async_call
from cmcl.client.errors import CmclError
from cmcl.client.files import (
    LocalFile,
    UploadProgress,
    check_digest,
    check_unchanged,
    digest_of,
    upload_key,
)
from cmcl.client.wire import Request, read, segment
from cmcl.contract.api.datasets import Upload

# Uploads of the same bytes within a day that expired, were used, or were aborted.
_MOST_BEGINNINGS = 50
# The service receives a few files at a time, and one may take long on a slow line.
_SHORTEST_TURN_SECONDS = 1.0
_LONGEST_TURN_SECONDS = 1800.0


class UploadCalls(Calls):
    """Calls about uploads."""

    async def upload(
        self,
        path: str | PathLike[str],
        on_progress: Callable[[UploadProgress], None] | None = None,
    ) -> Upload:
        """Upload a file. Datasets can name the result's `uri`. A file that has arrived is not sent again.

        The file is read twice, because its digest is announced before the content is sent.
        """
        file = await async_call(partial(LocalFile.of, Path(path)))
        digest = await _digest(file)

        def report(sent: int) -> None:
            if on_progress is not None:
                on_progress(UploadProgress(file.path, sent, file.size))

        begun = await self._begin(file, digest)
        if begun.state == "complete":
            complete = begun
            report(file.size)
        else:
            complete = await self._send(begun, file, report)
        check_digest(file, digest, complete)
        return complete

    async def upload_state(self, upload: str) -> Upload:
        """Return an upload."""
        return await self._session.get(Upload, _path(upload))

    async def abort_upload(self, upload: str) -> None:
        """Delete an upload with its file."""
        await self._session.delete(_path(upload))

    async def _begin(self, file: LocalFile, digest: str) -> Upload:
        """Return the upload of these bytes if it is usable, else a new one."""
        body = {"filename": file.path.name, "bytes": file.size, "sha256": digest}
        key = upload_key(file.path.name, digest)
        for beginning in range(_MOST_BEGINNINGS):
            begun = await self._session.post(Upload, "/v1/uploads", body, f"{key}-{beginning}")
            try:
                return await self.upload_state(begun.id)
            except CmclError as error:
                if error.status != httpx.codes.NOT_FOUND:
                    raise
        return await self._session.post(Upload, "/v1/uploads", body)

    async def _send(
        self, upload: Upload, file: LocalFile, on_sent: Callable[[int], None]
    ) -> Upload:
        """Send the file, again after an interruption, and while the service is busy (429) for up to half an hour."""
        headers = {
            "content-type": "application/octet-stream",
            # Without it, the body would be chunked.
            "content-length": str(file.size),
        }
        path = f"{_path(upload.id)}/file"
        request = Request("PUT", path, headers=headers, file=file.path, on_sent=on_sent)
        clock = self._session.clock
        deadline = clock.now() + _LONGEST_TURN_SECONDS
        while True:
            try:
                return read(Upload, await self._session.send(request))
            except CmclError as error:
                await async_call(partial(check_unchanged, file))
                if error.status == httpx.codes.CONFLICT:
                    # It may have arrived with a request whose response was lost.
                    now = await self.upload_state(upload.id)
                    if now.state == "complete":
                        return now
                pause = max(_SHORTEST_TURN_SECONDS, error.retry_after or 0.0)
                if error.status != httpx.codes.TOO_MANY_REQUESTS or clock.now() + pause > deadline:
                    raise
            await clock.async_sleep(pause)


async def _digest(file: LocalFile) -> str:
    try:
        return await async_call(partial(digest_of, file))
    except OSError as error:
        raise CmclError(f"{file.path} cannot be read: {error.strerror}") from error


def _path(upload: str) -> str:
    return f"/v1/uploads/{segment(upload)}"
