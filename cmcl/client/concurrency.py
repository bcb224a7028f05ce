"""Sleeping, blocking work and files, each in an asynchronous and a synchronous form.

The generator of `_sync` replaces the names of the asynchronous form by those of the synchronous one.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")

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


@asynccontextmanager
async def async_file_content(path: Path) -> AsyncIterator[AsyncIterator[bytes]]:
    """Open a file as the body of a request, read in chunks of 1 MiB."""
    async with await anyio.open_file(path, "rb") as file:
        yield _chunks(file)


@contextmanager
def file_content(path: Path) -> Iterator[BinaryIO]:
    """Open a file as the body of a request; httpx reads it in chunks."""
    with path.open("rb") as file:
        yield file


async def _chunks(file: "anyio.AsyncFile[bytes]") -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK_BYTES):
        yield chunk
