"""Bodies that are read while they arrive: files, and whatever else is too large for memory."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.core.errors import IncompleteBody

# A client that is slower over a whole body would hold its place for hours. The proxy disconnects one that sends nothing.
LEAST_BYTES_PER_SECOND = 64 << 10
GRACE_SECONDS = 20.0


async def pieces_of(request: Request) -> AsyncIterator[bytes]:
    """Yield the pieces of a body. Raises IncompleteBody if it ends early, or arrives too slowly.

    Only the time spent waiting for a piece counts, not the time that the caller spends with it.
    """
    waited, arrived = 0.0, 0
    now = asyncio.get_running_loop().time
    before = now()
    try:
        async for piece in request.stream():
            waited += now() - before
            arrived += len(piece)
            if waited > GRACE_SECONDS + arrived / LEAST_BYTES_PER_SECOND:
                raise IncompleteBody(
                    f"{arrived} bytes of the body arrived in {waited:.1f} s: permitted are {GRACE_SECONDS:g} s more "
                    f"than {LEAST_BYTES_PER_SECOND} bytes/s take; send it again"
                )
            yield piece
            before = now()
    except ClientDisconnect as error:
        raise IncompleteBody("the connection ended before the body did") from error
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) != arrived:
        raise IncompleteBody(f"{arrived} bytes arrived, the Content-Length is {declared}")
