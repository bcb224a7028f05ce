"""The parent's side of a child process: pipes, log, and how the process ended."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import BaseModel

from cmcl.contract.errors import (
    DigestMismatch,
    InvalidDataset,
    InvalidUri,
    InvalidVersion,
    ObjectExists,
    ObjectNotFound,
    StorageUnavailable,
    WorkerError,
)
from workers.sandbox.frames import ERROR, LARGEST_BODY, READY, FrameReader, TimedOut, write_frame

_ROOT = Path(__file__).parents[2]
_PROGRAM = "workers.sandbox.child_process"
# Keys and addresses of the service and of Ray stay out of a process that reads files of users.
_HIDDEN_VARIABLES = ("CMCL_", "RAY_", "OTEL_")
_START_SECONDS = 300
_MAX_LOG_BYTES = 4000
_MIB = 1 << 20
_PIPE_BYTES = _MIB
_RAISED: dict[str, type[WorkerError]] = {
    error.__name__: error
    for error in (
        *(InvalidDataset, InvalidUri, InvalidVersion, StorageUnavailable),
        *(ObjectNotFound, ObjectExists, DigestMismatch),
    )
}


@dataclass(frozen=True)
class ChildLimits:
    """Limits of a child. `memory` in bytes. `seconds`: how long the parent waits for the results of one task.

    `hidden`: prefixes of further environment variables that the child does not get.
    """

    memory: int
    seconds: float = 3600
    hidden: tuple[str, ...] = ()


class TaskFailed(StorageUnavailable):
    """The task failed: a bug, a missing package or a full disk. `error`: class of the exception in the child."""

    def __init__(self, message: str, error: str) -> None:
        super().__init__(message)
        self.error = error


class ChildProcess:
    """A started process, its pipes and its log."""

    def __init__(self, preload: Sequence[str], limits: ChildLimits) -> None:
        self.memory_reason = f"took more than {limits.memory // _MIB} MiB of memory"
        self._limits = limits
        self._is_ready = False
        self._log_start = 0
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self.popen = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM, str(os.getpid()), *preload],
            cwd=_ROOT,
            env=_environment(limits.hidden),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            # Ctrl-C in a terminal ends the parent; for the child it would look like a crash.
            start_new_session=True,
        )
        assert self.popen.stdout is not None  # noqa: S101 - for the type checker
        _widen(self.popen.stdout)
        # The child cannot send more at once than fits into its memory.
        self.frames = FrameReader(self.popen.stdout, min(LARGEST_BODY, limits.memory))  # type: ignore[arg-type]

    def send(self, task: str, request: BaseModel, folder: Path) -> None:
        """Wait until the process is ready, and send a task. Raises StorageUnavailable if it does not start."""
        self._wait_until_ready()
        self._log_start = os.fstat(self._log.fileno()).st_size
        # Several threads of one process add up their processor time.
        seconds = self._limits.seconds * (os.cpu_count() or 1) + 1
        order = {
            "task": task,
            "folder": str(folder),
            "memory": self._limits.memory,
            "seconds": seconds,
        }
        try:
            write_frame(self.popen.stdin, order, request.model_dump_json().encode())  # type: ignore[arg-type]
        except BrokenPipeError:
            pass  # The process died between two tasks; the next read reports this.

    def _wait_until_ready(self) -> None:
        if self._is_ready:
            return
        try:
            frame = self.frames.read(_START_SECONDS)
        except TimedOut as error:
            raise StorageUnavailable(
                f"the process that reads files did not start within {_START_SECONDS} s"
            ) from error
        if frame is None or READY not in frame.header:
            raise StorageUnavailable(
                f"the process that reads files {self.death()} before its first task: {self.log()}"
            )
        self._is_ready = True

    def death(self) -> str:
        """Return how the process ended. Call it after the end of its output."""
        try:
            status = self.popen.wait(5)
        except subprocess.TimeoutExpired:
            return "closed its output"
        if status == -signal.SIGXCPU:
            return "took too much processor time"
        return (
            f"ended with {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
        )

    def log(self) -> str:
        """Return the end of the standard error of the current task."""
        size = os.fstat(self._log.fileno()).st_size
        start = max(self._log_start, size - _MAX_LOG_BYTES)
        return os.pread(self._log.fileno(), _MAX_LOG_BYTES, start).decode(errors="replace")

    def error(self, last: dict) -> WorkerError:  # type: ignore[type-arg]
        """Return the error that the last frame reports."""
        name, message = str(last[ERROR]), str(last.get("message", ""))[:10_000]
        if name in _RAISED:
            return _RAISED[name](message)
        return TaskFailed(f"the files could not be read: {name}: {message}\n{self.log()}", name)

    def close(self) -> None:
        """Kill the process, wait for it, and close pipes and log."""
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout, self._log):
            assert pipe is not None  # noqa: S101 - for the type checker
            pipe.close()


def _environment(hidden: tuple[str, ...]) -> dict[str, str]:
    """Return the variables of this process except hidden ones, limits on the threads of libraries, and no plug-ins of HDF5."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((*_HIDDEN_VARIABLES, *hidden))
    }
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    return threads | kept | {"HDF5_PLUGIN_PRELOAD": "::"}


def _widen(pipe: IO[bytes]) -> None:
    """Enlarge the buffer of a pipe where the system can: images of megabytes pass with fewer switches."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        try:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except PermissionError:
            pass  # The user has used up its pages for pipes; the default works.


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
