"""Bodies that are read while they arrive: files, and whatever else is too large for memory."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.core.errors import IncompleteBody
from workers.flow_control import Pace

# A client that sends no byte for so long is treated as gone: others need its slot.
_PACE = Pace(idle_timeout_seconds=20.0)


async def pieces_of(request: Request, pace: Pace = _PACE) -> AsyncIterator[bytes]:
    """Yield the pieces of a body. Raises IncompleteBody if it ends early, or arrives more slowly than the pace.

    Only the time spent waiting for a piece counts, not the time that the caller spends with it.
    """
    waited, arrived = 0.0, 0
    now = asyncio.get_running_loop().time
    pieces = request.stream()
    while True:
        before = now()
        try:
            async with asyncio.timeout_at(before + pace.seconds_left(waited, arrived)):
                piece = await anext(pieces, None)
        except TimeoutError as error:
            raise too_slow(pace, waited + now() - before, arrived) from error
        except ClientDisconnect as error:
            raise IncompleteBody("the connection ended before the body did") from error
        if piece is None:
            break
        waited += now() - before
        arrived += len(piece)
        yield piece
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) != arrived:
        raise IncompleteBody(f"{arrived} bytes arrived, the Content-Length is {declared}")


def too_slow(pace: Pace, waited: float, arrived: int) -> IncompleteBody:
    """Return the error for a body of which so many bytes arrived in so many seconds."""
    idle_timeout = f"{pace.idle_timeout_seconds:g} s"
    return IncompleteBody(
        f"{arrived} bytes of the body arrived in {waited:.1f} s, then none: permitted are {idle_timeout} "
        f"without a byte, and {idle_timeout} more than {pace.bytes_per_second} bytes/s take; send it again"
    )
