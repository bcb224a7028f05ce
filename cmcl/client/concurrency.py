"""Sleeping, blocking work and files, each in an asynchronous and a synchronous form.

The generator of `_sync` replaces the names of the asynchronous form by those of the synchronous one.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")
OnSent = Callable[[int], None]

_CHUNK_BYTES = 2**20


class Clock:
    """Monotonic time in seconds, and sleeping. Tests replace it."""

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep, blocking the thread."""
        time.sleep(seconds)

    async def async_sleep(self, seconds: float) -> None:
        """Sleep with asyncio or trio."""
        await anyio.sleep(seconds)


async def async_call(work: Callable[[], T]) -> T:
    """Run blocking `work` in a thread, and return its result."""
    return await anyio.to_thread.run_sync(work)


def call(work: Callable[[], T]) -> T:
    """Run `work`, and return its result."""
    return work()


async def async_file_content(path: Path, on_sent: OnSent | None) -> AsyncIterator[bytes]:
    """Read a file as the body of a request, in chunks. `on_sent` gets the bytes before the next one."""
    sent = 0
    async with await anyio.open_file(path, "rb") as file:
        while chunk := await file.read(_CHUNK_BYTES):
            yield chunk
            sent += len(chunk)
            if on_sent is not None:
                on_sent(sent)


def file_content(path: Path, on_sent: OnSent | None) -> Iterator[bytes]:
    """Read a file as the body of a request, in chunks. `on_sent` gets the bytes before the next one."""
    sent = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
            sent += len(chunk)
            if on_sent is not None:
                on_sent(sent)
