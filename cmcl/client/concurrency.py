"""Waiting, blocking work and files, once to be awaited and once to block.

The only code of the client that is written twice: `_sync` is generated from `_async`, and these are
the names that the generator exchanges.
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
    """Monotonic time in seconds, and sleeping. Tests give a client another one."""

    def now(self) -> float:
        """Seconds since some moment in the past."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block for that long."""
        time.sleep(seconds)

    async def async_sleep(self, seconds: float) -> None:
        """Sleep with asyncio or trio."""
        await anyio.sleep(seconds)


async def async_call(work: Callable[[], T]) -> T:
    """The result of `work`, which reads files or computes, from a thread."""
    return await anyio.to_thread.run_sync(work)


def call(work: Callable[[], T]) -> T:
    """The result of `work`."""
    return work()


@asynccontextmanager
async def async_file_content(path: Path) -> AsyncIterator[AsyncIterator[bytes]]:
    """A file as the body of a request, read in chunks of 1 MiB."""
    async with await anyio.open_file(path, "rb") as file:
        yield _chunks(file)


@contextmanager
def file_content(path: Path) -> Iterator[BinaryIO]:
    """A file as the body of a request; httpx reads it in chunks."""
    with path.open("rb") as file:
        yield file


async def _chunks(file: "anyio.AsyncFile[bytes]") -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK_BYTES):
        yield chunk
