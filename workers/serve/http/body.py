"""Reading what a client sends: no more than permitted, not for ever, and counted while it is held."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from starlette.requests import Request

from workers.serve.errors import BodyTimeout, BodyTooLarge
from workers.serve.http.admission import Budget
from workers.serve.settings import ServeArgs


@asynccontextmanager
async def held_body(
    request: Request, args: ServeArgs, budget: Budget, key: str
) -> AsyncIterator[bytes]:
    """The whole body, counted until the block ends. Raises BodyTooLarge, BodyTimeout, Overloaded."""
    declared = _declared(request, args.max_body_bytes)
    with ExitStack() as held:
        held.enter_context(budget.held(key, declared))
        body = bytearray()
        try:
            async with asyncio.timeout(args.body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    _check_size(len(body), args.max_body_bytes)
                    if not declared:  # It comes in chunks, so nobody knows how many.
                        held.enter_context(budget.held(key, len(chunk)))
        except TimeoutError as error:
            raise BodyTimeout(
                f"{len(body)} bytes of the body came in {args.body_seconds:g} s, and then no end"
            ) from error
        yield bytes(body)


def _declared(request: Request, limit: int) -> int:
    text = request.headers.get("content-length", "")
    declared = int(text) if text.isdecimal() else 0
    if declared > limit:
        raise BodyTooLarge(f"the body has {declared} bytes; permitted are {limit}")
    return declared


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise BodyTooLarge(f"the body has more than {limit} bytes, which is what is permitted")
