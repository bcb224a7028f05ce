"""The interface of object storage. Two adapters: `local` (file://) and `s3` (s3://, any endpoint).

Training retries for minutes (`retry_unavailable`): an outage must not cost hours of it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from cmcl.contract.errors import InvalidUri, StorageUnavailable

CHUNK_BYTES = 1 << 20
_ODD = frozenset("\\\x7f") | {chr(code) for code in range(32)}
T = TypeVar("T")
# A store that restarts, or a network that is rerouted, is back by then.
RETRY_SECONDS = 120.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
# What the store answered to calls that are being repeated, by thread.
_answers: dict[int, str] = {}


class Writer(Protocol):
    """Takes the bytes of an object, piece by piece."""

    def write(self, data: bytes, /) -> object:
        """Add bytes."""
        ...


class ObjectStore(Protocol):
    """Objects under one root address; a key is a relative path with forward slashes.

    A reader sees a whole object or none: never a part of one that is being written.
    Every method may raise `StorageUnavailable`.
    """

    uri: str

    def read(self, key: str) -> bytes:
        """All bytes of a small object. Raises ObjectNotFound."""
        ...

    def stream(self, key: str) -> Iterator[bytes]:
        """The bytes of an object of any size, in chunks of at most CHUNK_BYTES.

        Raises ObjectNotFound at the call, not with the first chunk. Raises StorageUnavailable where a
        body breaks off or ends before its declared length.
        """
        ...

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of an object of any size, fewer where it ends before.

        `stop` is larger than `start`. Raises ObjectNotFound.
        """
        ...

    def download(self, key: str, path: Path) -> None:
        """Copy an object of any size to a local file. Raises ObjectNotFound."""
        ...

    def size(self, key: str) -> int:
        """Bytes. Raises ObjectNotFound."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write or overwrite."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Write an object that must not exist; one of concurrent writers wins. Raises ObjectExists."""
        ...

    def upload(self, path: Path, key: str) -> None:
        """Write or overwrite from a local file of any size."""
        ...

    def writer(self, key: str, size: int) -> AbstractContextManager[Writer]:
        """Write or overwrite an object of up to `size` bytes, and at least one, piece by piece.

        The object is written when the block ends, and not at all if the block raises.
        """
        ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys that start with `prefix`, in lexical order."""
        ...

    def folders(self, prefix: str) -> list[str]:
        """Names directly under `prefix` (empty, or ending in a slash) that have keys below them."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object. It is no error if there is none."""
        ...


def checked_key(key: str) -> str:
    """Return the key. Raises InvalidUri if it is empty, absolute, or has '..' or odd characters.

    The same keys are valid in every adapter, regardless of what its disk or bucket accepts.
    """
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise InvalidUri(f"{key!r} is no key: write folder/name, without empty parts, '.' and '..'")
    if _ODD & set(key):
        raise InvalidUri(f"{key!r} has a character that keys may not have")
    return key


def checked_prefix(prefix: str) -> str:
    """Return a prefix of keys, which may be empty or end in a slash. Raises InvalidUri."""
    if prefix:
        checked_key(prefix.removesuffix("/"))
    return prefix


def retry_unavailable(
    ask: Callable[[], T],
    seconds: float = RETRY_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call `ask` until the store is available, with exponential pauses.

    `ask` must be idempotent and read or write a single object: with several objects, the first could
    use up all of the time, and every retry would repeat all of them. Raises StorageUnavailable
    `seconds` after the first failure.
    """
    pause, give_up_at = _FIRST_PAUSE, None
    try:
        while True:
            try:
                return ask()
            except StorageUnavailable as error:
                give_up_at = clock() + seconds if give_up_at is None else give_up_at
                if clock() + pause > give_up_at:
                    raise
                _answers[threading.get_ident()] = str(error)
                print(f"retrying in {pause:g} s: {error}", flush=True)
            sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    finally:
        _answers.pop(threading.get_ident(), None)


def unavailable_because() -> str | None:
    """What the store answered to a call that this process is repeating; None where it repeats none. From any thread."""
    return next(iter([*_answers.values()]), None)
