"""The bounded child process itself: `main` imports modules, reports that it is ready, and runs tasks from standard input.

A task is a function `task(request, output)`, named by module and name, with a pydantic model as its request. Parent and
child exchange frames: a JSON header and raw bytes, each with its length. The child has parsed bytes that are not trusted,
so nothing that it sends is unpickled, and lengths are bounded. It ends with its parent.
"""

import ctypes
import importlib
import math
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, get_type_hints

import orjson
from pydantic import BaseModel

_PR_SET_PDEATHSIG = 1
_NICENESS = 10
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


class FrameReader:
    """Reads frames of an untrusted sender. `file`: unbuffered. `largest_body` in bytes."""

    def __init__(self, file: BinaryIO, largest_body: int = LARGEST_BODY) -> None:
        self._file, self._largest_body = file, largest_body
        self._poll = select.poll()
        self._poll.register(file, select.POLLIN)

    def read(self, seconds: float | None = None) -> Frame | None:
        """Return the next frame; None if the sender has ended. Raises TimedOut, BadFrame."""
        end = None if seconds is None else time.monotonic() + seconds
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

    def _read(self, size: int, end: float | None) -> bytearray | None:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            left = None if end is None else 1000 * (end - time.monotonic())
            if (left is not None and left <= 0) or not self._poll.poll(left):
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
            _bound_cpu(seconds + 1)
        write_frame(self._file, {STEP: name, "seconds": seconds})

    def send(self, header: dict[str, Any], body: Iterable[bytes | memoryview] = ()) -> None:
        """Send a result. The parts of `body` are concatenated."""
        write_frame(self._file, header, *body)


def named_function(name: str) -> Callable[..., Any]:
    """Return the function `module:function`."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def name_of(function: Callable[..., Any]) -> str:
    """Return `module:function` of a top-level function."""
    return f"{function.__module__}:{function.__qualname__}"


def main() -> None:
    """Run tasks until standard input ends. Arguments: the parent's process id, then modules to import first."""
    parent, *modules = sys.argv[1:]
    _end_with(int(parent))
    # Frames alone go to standard output: what libraries print goes to standard error.
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    for module in modules:
        importlib.import_module(module)
    write_frame(output, {READY: True})
    frames, is_bounded = FrameReader(os.fdopen(0, "rb", buffering=0)), False
    while frame := frames.read():
        order = frame.header
        if not is_bounded:
            _bound_memory(order["memory"])
            is_bounded = True
        _bound_cpu(order["seconds"])
        writer = FrameWriter(output, Path(order["folder"]))
        write_frame(output, _result(order["task"], bytes(frame.body), writer))


def _result(task: str, request: bytes, writer: FrameWriter) -> dict[str, Any]:
    try:
        function = named_function(task)
        request_type: type[BaseModel] = next(iter(get_type_hints(function).values()))
        function(request_type.model_validate_json(request), writer)
    except Exception as error:  # noqa: BLE001
        # The parent maps the error; the traceback goes to its log. Without memory there is no traceback: from
        # Python 3.13 on, printing one parses the source, and a failure there would hide this error.
        if not isinstance(error, MemoryError):
            traceback.print_exc()
        return {ERROR: type(error).__name__, "message": str(error)[:10_000]}
    return {DONE: True}


def _bound_memory(memory: int) -> None:
    """Limit memory (bytes), and disable core files.

    Only writable memory counts: files that are mapped for reading are free. Existing limits, such as
    those of the parent process, are not raised.
    """
    for limit, most in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(limit)
        lower = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (lower, lower))


def _bound_cpu(seconds: float) -> None:
    """Limit the CPU time from now on. The process can renew this limit."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime + seconds)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when the process `parent`, or its thread, ends; on Linux only."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        # The parent ended before the call.
        os.kill(os.getpid(), signal.SIGKILL)


def give_way_to_queries() -> None:
    """Lower the priority of this thread and of what it starts. Once for each process, before it starts threads.

    On the same machine, processes that answer requests then get the CPU first: their clients are waiting.
    """
    os.nice(max(0, _NICENESS - os.nice(0)))
