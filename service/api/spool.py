"""Spool bodies that are too large for memory to a file, with their digest."""

import asyncio
import base64
import binascii
import errno
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from service.core.errors import DiskFull, FieldProblem, IncompleteBody, Unprocessable
from workers.flow_control import Pace

# Written at once: small enough for many at a time, large enough to be worth a thread.
_BLOCK_BYTES = 1 << 20
# A client that sends no byte for so long is treated as gone: others need its slot.
_IDLE_TIMEOUT_SECONDS = 20.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SHA256 = re.compile(r"(?:^|,)\s*sha-256\s*=\s*:([A-Za-z0-9+/=]*):\s*(?=,|;|$)")


@dataclass(frozen=True)
class Spooled:
    """A body in a file, which is removed after the request."""

    path: Path
    bytes: int
    sha256: str


class Spool:
    """Writes a body of pieces of any size. Raises DiskFull."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._waiting = bytearray()
        self.bytes = 0

    async def add(self, data: bytes) -> None:
        """Add bytes."""
        self._waiting += data
        if len(self._waiting) >= _BLOCK_BYTES:
            await self._write()

    async def finish(self) -> str:
        """Write the rest, and return the digest."""
        await self._write()
        return self._digest.hexdigest()

    async def _write(self) -> None:
        block, self._waiting = bytes(self._waiting), bytearray()
        await run_in_threadpool(self._write_block, block)

    def _write_block(self, block: bytes) -> None:
        self._digest.update(block)
        self.bytes += len(block)
        try:
            self._file.write(block)
            self._file.flush()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise DiskFull("the disk of the service is full; retry later") from error


@asynccontextmanager
async def spooled(
    request: Request, idle_timeout_seconds: float = _IDLE_TIMEOUT_SECONDS
) -> AsyncIterator[Spooled]:
    """Spool the body of the request. Raises IncompleteBody, BodyTooLarge, DiskFull, Unprocessable."""
    with NamedTemporaryFile(prefix="cmcl-upload-") as file:
        spool = Spool(file)
        pace = Pace(idle_timeout_seconds)
        async for piece in in_time(_pieces(request), pace):
            await spool.add(piece)
        digest = await spool.finish()
        _check_promises(request, spool.bytes, digest)
        yield Spooled(Path(file.name), spool.bytes, digest)


async def in_time(pieces: AsyncIterator[bytes], pace: Pace) -> AsyncIterator[bytes]:
    """Yield the pieces of a body. Raises IncompleteBody if they arrive more slowly than the pace.

    Only the time spent waiting for a piece counts, not the time spent writing it.
    """
    waited, arrived = 0.0, 0
    now = asyncio.get_running_loop().time
    while True:
        before = now()
        try:
            async with asyncio.timeout_at(before + pace.seconds_left(waited, arrived)):
                piece = await anext(pieces, None)
        except TimeoutError as error:
            raise too_slow(pace, waited + now() - before, arrived) from error
        if piece is None:
            return
        waited += now() - before
        arrived += len(piece)
        yield piece


def too_slow(pace: Pace, waited: float, arrived: int) -> IncompleteBody:
    """Return the error for a body of which so many bytes arrived in so many seconds."""
    idle_timeout = f"{pace.idle_timeout_seconds:g} s"
    return IncompleteBody(
        f"{arrived} bytes of the body arrived in {waited:.1f} s, then none: permitted are {idle_timeout} "
        f"without a byte, and {idle_timeout} more than {pace.bytes_per_second} bytes/s take; send it again"
    )


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """Stream the body. Raises IncompleteBody if it ends early."""
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect as error:
        raise IncompleteBody("the connection ended before the body did") from error


def _check_promises(request: Request, size: int, digest: str) -> None:
    """Check the body against Content-Length and Content-Digest."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) != size:
        raise IncompleteBody(f"{size} bytes arrived, the Content-Length is {declared}")
    promised = _promised_digest(request.headers.get("content-digest"))
    if promised is not None and promised != digest:
        message = f"the body's SHA-256 is {digest}, Content-Digest says {promised}; send it again"
        raise Unprocessable(message, FieldProblem("Content-Digest", message, digest))


def _promised_digest(header: str | None) -> str | None:
    """The SHA-256 in a Content-Digest (RFC 9530); other algorithms are ignored, as it requires."""
    if header is None or "sha-256" not in header.lower():
        return None
    found = _SHA256.search(header)
    try:
        digest = base64.b64decode(found.group(1), validate=True) if found else b""
    except binascii.Error:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        message = "write sha-256=:BASE64:, for example from `openssl dgst -sha256 -binary | base64`"
        raise Unprocessable(message, FieldProblem("Content-Digest", message, header))
    return digest.hex()
