"""Frames between a process and its bounded child: a JSON header and raw bytes, each with its length.

The child has parsed bytes that are not trusted, so nothing that it sends is unpickled, and lengths are bounded.
"""

import select
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO

import orjson

from workers.sandbox.limits import bound_cpu

_LENGTHS = Struct(">II")
LARGEST_HEADER = 1 << 20
LARGEST_BODY = (1 << 32) - 1

# Headers with one of these keys report on the task. They are not passed to the caller.
READY, STEP, DONE, ERROR = "ready", "step", "done", "error"


class BadFrame(Exception):
    """The received bytes are not a frame, or the frame is too large."""


class TimedOut(Exception):
    """A frame did not arrive in time."""


@dataclass(frozen=True)
class Frame:
    """A message: a JSON object and bytes."""

    header: dict[str, Any]
    body: bytearray = field(default_factory=bytearray)


def write_frame(file: BinaryIO, header: dict[str, Any], *parts: bytes | memoryview) -> None:
    """Write a frame whose body is the concatenation of `parts`."""
    packed = orjson.dumps(header)
    size = sum(len(part) for part in parts)
    if len(packed) > LARGEST_HEADER or size > LARGEST_BODY:
        raise BadFrame(
            f"a frame with a header of {len(packed)} bytes and a body of {size}: permitted are "
            f"{LARGEST_HEADER} and {LARGEST_BODY}"
        )
    for part in (_LENGTHS.pack(len(packed), size) + packed, *parts):
        left = memoryview(part)
        while left:
            left = left[file.write(left) :]


def read_frame(file: BinaryIO) -> Frame | None:
    """Return the next frame of a trusted sender; None at the end of the file."""
    lengths = _read_all(file, _LENGTHS.size)
    if lengths is None:
        return None
    header, body = _LENGTHS.unpack(lengths)
    packed, content = _read_all(file, header), _read_all(file, body)
    return None if packed is None or content is None else Frame(orjson.loads(packed), content)


def _read_all(file: BinaryIO, size: int) -> bytearray | None:
    """Return `size` bytes; None if the file ends before."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            return None
        view = view[count:]
    return data


class FrameReader:
    """Reads frames of an untrusted sender. `file`: unbuffered. `largest_body` in bytes."""

    def __init__(self, file: BinaryIO, largest_body: int) -> None:
        self._file, self._largest_body = file, largest_body
        self._poll = select.poll()
        self._poll.register(file, select.POLLIN)

    def read(self, seconds: float) -> Frame | None:
        """Return the next frame; None if the sender has ended. Raises TimedOut, BadFrame."""
        end = time.monotonic() + seconds
        lengths = self._read(_LENGTHS.size, end)
        if lengths is None:
            return None
        header, body = _LENGTHS.unpack(lengths)
        if header > LARGEST_HEADER or body > self._largest_body:
            raise BadFrame(f"a header of {header} bytes and a body of {body} were announced")
        packed, content = self._read(header, end), self._read(body, end)
        if packed is None or content is None:
            return None
        try:
            parsed = orjson.loads(packed)
        except orjson.JSONDecodeError as error:
            raise BadFrame(f"the header is not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise BadFrame("the header is not an object")
        return Frame(parsed, content)

    def _read(self, size: int, end: float) -> bytearray | None:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            left = end - time.monotonic()
            if left <= 0 or not self._poll.poll(left * 1000):
                raise TimedOut
            count = self._file.readinto(view)  # type: ignore[attr-defined]
            if not count:
                return None
            view = view[count:]
        return data


class FrameWriter:
    """The output of a task in the child: results are sent with `send`, files are written to `folder`."""

    def __init__(self, file: BinaryIO, folder: Path) -> None:
        self.folder = folder
        self._file = file

    def step(self, name: str | int, seconds: float | None = None) -> None:
        """Announce the next step, for messages about a crash.

        `seconds`: limit of its wall-clock and CPU time. None: the limit of the task.
        """
        if seconds is not None:
            bound_cpu(seconds + 1)
        write_frame(self._file, {STEP: name, "seconds": seconds})

    def send(self, header: dict[str, Any], body: Iterable[bytes | memoryview] = ()) -> None:
        """Send a result. The parts of `body` are concatenated."""
        write_frame(self._file, header, *body)
