"""Reading what a client sends: no more than permitted, not for ever, and counted while it is held."""

import asyncio

from starlette.requests import Request

from workers.serve.errors import BodyTimeout, BodyTooLarge
from workers.serve.http.admission import Admission
from workers.serve.http.until_sent import hold_until_sent
from workers.serve.settings import ServeArgs


async def held_body(request: Request, args: ServeArgs, admission: Admission, key: str) -> bytes:
    """The whole body. It and its request are counted until the answer has left.

    Raises BodyTooLarge, BodyTimeout, Overloaded and ClientDisconnect.
    """
    declared = _declared(request, args.max_body_bytes)
    hold_until_sent(request, admission.requests, key, 1)
    hold_until_sent(request, admission.bytes, key, declared)
    body = bytearray()
    try:
        async with asyncio.timeout(args.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if not declared:  # It comes in chunks, so nobody knows how many.
                    _check_size(len(body), args.max_body_bytes)
                    hold_until_sent(request, admission.bytes, key, len(chunk))
    except TimeoutError as error:
        raise BodyTimeout(
            f"{len(body)} bytes of the body came in {args.body_seconds:g} s, and then no end"
        ) from error
    return bytes(body)


def _declared(request: Request, most: int) -> int:
    text = request.headers.get("content-length", "").lstrip("0")
    if not text.isdecimal():
        return 0
    # By its length first: int() raises ValueError for thousands of digits.
    if len(text) > len(str(most)) or int(text) > most:
        raise BodyTooLarge(f"the body has {text[:20]} bytes; permitted are {most}")
    return int(text)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise BodyTooLarge(f"the body has more than {most} bytes, which is what is permitted")
