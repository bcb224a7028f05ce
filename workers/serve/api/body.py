"""Reading a request's body: bounded in bytes and in time, and counted as it arrives."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from starlette.requests import Request

from cmcl.contract.pace import Pace
from workers.serve.api.context import Replica
from workers.serve.api.until_sent import hold_until_sent
from workers.serve.errors import BodyTimeout, BodyTooLarge

# Between two pieces of a body; less where `body_seconds` is.
_PATIENCE_SECONDS = 10.0
# Reading or writing so much takes about a millisecond; beyond it others would wait on the event loop.
_INLINE_BYTES = 128 << 10

P = ParamSpec("P")
T = TypeVar("T")


async def held_body(
    request: Request, replica: Replica, tenant: str, patience_seconds: float = _PATIENCE_SECONDS
) -> bytes:
    """The whole body. It and its request are counted until the answer has left.

    Bytes count when they have arrived: a declared length that is never sent holds nothing. Raises
    BodyTooLarge, BodyTimeout, Overloaded and ClientDisconnect.
    """
    args, admission = replica.args, replica.admission
    _check_declared(request, args.max_body_bytes)
    hold_until_sent(request, admission.requests, tenant, 1)
    body = bytearray()
    loop = asyncio.get_running_loop()
    pace, began = Pace(min(patience_seconds, args.body_seconds)), loop.time()
    try:
        async with asyncio.timeout_at(began + pace.patience_seconds) as timeout:
            async for chunk in request.stream():
                hold_until_sent(request, admission.bytes, tenant, len(chunk))
                body += chunk
                if len(body) > args.max_body_bytes:
                    raise _too_large("more than that", args.max_body_bytes)
                now = loop.time()
                due = now + pace.seconds_left(now - began, len(body))
                timeout.reschedule(min(due, began + args.body_seconds))
    except TimeoutError as error:
        raise BodyTimeout(
            f"{len(body)} bytes of the body arrived in {loop.time() - began:.1f} s, and then none; "
            f"permitted are {pace.patience_seconds:g} s without a byte, {pace.bytes_per_second} "
            f"bytes/s at least over its time but for as long, and {args.body_seconds:g} s for all "
            "of it; send it again"
        ) from error
    return bytes(body)


async def run_if_large(
    replica: Replica,
    tenant: str,
    size: int,
    function: Callable[P, T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """What a function returns that reads or writes `size` bytes: here, or by turns with other tenants."""
    if size <= _INLINE_BYTES:
        return function(*args, **kwargs)
    return await replica.compute.run(tenant, function, *args, **kwargs)


def _check_declared(request: Request, most: int) -> None:
    text = request.headers.get("content-length", "").lstrip("0")
    # By its length first: int() raises ValueError for thousands of digits.
    if text.isdecimal() and (len(text) > len(str(most)) or int(text) > most):
        raise _too_large(f"{text[:20]} bytes", most)


def _too_large(found: str, most: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has {found}; permitted are {most} bytes")
