"""A bounded child process that runs tasks on users' bytes, one after another, and the pool of a worker process.

Readers of file formats are large libraries, and users send damaged and hostile files. A crash must not take
down a worker process, and a parser that is taken over must not find keys in its environment. The child is
started ahead of need, because its imports take longer than a small dataset. It has a folder for temporary files,
which a later process removes if this one is killed. No child serves two owners.

A task is a top-level function `task(request, output)`: a pydantic model, and a `FrameWriter` for results.
"""

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

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
from workers.sandbox.child_process import (
    DONE,
    ERROR,
    LARGEST_BODY,
    READY,
    STEP,
    BadFrame,
    Frame,
    FrameReader,
    FrameWriter,
    TimedOut,
    name_of,
    write_frame,
)

_FOLDER_PREFIX = "cmcl-prepare-"
# Younger folders may not be locked yet.
_FOLDER_IS_NEW_SECONDS = 60

logger = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", bound=BaseModel)

_OUT_OF_MEMORY = ("MemoryError", "ArrowMemoryError")
_MIB = 1 << 20
_ROOT = Path(__file__).parents[2]
_PROGRAM = "from workers.sandbox.child_process import main; main()"
# Keys and addresses of the service and of Ray stay out of a process that reads files of users.
_HIDDEN_VARIABLES = ("CMCL_", "RAY_", "OTEL_")
_START_SECONDS = 300
_MAX_LOG_BYTES = 4000
_PIPE_BYTES = _MIB
_RAISED: dict[str, type[WorkerError]] = {
    error.__name__: error
    for error in (
        *(InvalidDataset, InvalidUri, InvalidVersion, StorageUnavailable),
        *(ObjectNotFound, ObjectExists, DigestMismatch),
    )
}
# One part in five of the machine, or of its container: other processes need memory as well.
_SHARE = 5
_MIN_MEMORY, _MAX_MEMORY = 512 * _MIB, 8192 * _MIB
_CGROUPS = ("memory.max", "memory/memory.limit_in_bytes")
# The kernel ends a child with the thread that started it, so that thread must live as long as the process.
_STARTER = ThreadPoolExecutor(1, "child-starter")

# Libraries leak a little; a fresh process has all of its memory again.
_MOST_TASKS = 200
# The memory of a child that waits is not reserved for it, unlike that of one in use.
_MOST_IDLE_BYTES = 256 << 20


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

    def __init__(self, message: str, error: str = "") -> None:
        super().__init__(message)
        self.error = error


class ScratchFolder:
    """A new folder under TMPDIR. Raises StorageUnavailable if none can be created."""

    def __init__(self) -> None:
        _remove_abandoned()
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
        except OSError as error:
            raise StorageUnavailable(
                f"no folder can be created in {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a "
                "folder on a writable disk"
            ) from error
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def clear(self) -> None:
        """Remove the contents of the folder."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def close(self) -> None:
        """Remove the folder."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _remove_abandoned() -> None:
    """Remove folders of processes that ended without removing them."""
    newest = time.time() - _FOLDER_IS_NEW_SECONDS
    for path in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        try:
            if path.stat().st_mtime > newest:
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # removed by another process, or not ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # in use
        finally:
            os.close(lock)


def share_of_memory() -> int:
    """Bytes for one child: a fifth of the memory of this machine or container, 8 GiB at most."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in _CGROUPS:
        try:
            total = min(total, int((Path("/sys/fs/cgroup") / name).read_text()))
        except (OSError, ValueError):
            # There is no such cgroup, or it has no bound ("max").
            continue
    return max(_MIN_MEMORY, min(_MAX_MEMORY, total // _SHARE))


class ChildCrashed(Exception):
    """The child died, or took too much time or memory. Its next task gets a new process.

    `step`: the step that the task announced last. `reason`: such as "ended with SIGSEGV".
    """

    def __init__(self, step: str | int | None, reason: str, log: str) -> None:
        super().__init__(f"{step or 'the task'} {reason}\n{log}")
        self.step, self.reason, self.log = step, reason, log


class _Process:
    """A started process, its pipes and its log."""

    def __init__(self, preload: Sequence[str], limits: ChildLimits) -> None:
        self.memory_reason = f"took more than {limits.memory // _MIB} MiB of memory"
        self._limits = limits
        self._is_ready = False
        self._log_start = 0
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self.popen = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(os.getpid()), *preload],
            cwd=_ROOT,
            env=_environment(limits.hidden),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            # Ctrl-C in a terminal ends the parent; for the child it would look like a crash.
            start_new_session=True,
        )
        assert self.popen.stdout is not None
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            # Images of megabytes pass with fewer switches. A user may have used up its pages for pipes.
            with suppress(PermissionError):
                fcntl.fcntl(self.popen.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
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
        # A process that died between two tasks is reported by the next read.
        with suppress(BrokenPipeError):
            write_frame(self.popen.stdin, order, request.model_dump_json().encode())  # type: ignore[arg-type]

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
        if status >= 0:
            return f"ended with status {status}"
        known = -status in set(signal.Signals)
        return f"ended with {signal.Signals(-status).name if known else f'signal {-status}'}"

    def log(self) -> str:
        """Return the end of the standard error of the current task."""
        size = os.fstat(self._log.fileno()).st_size
        start = max(self._log_start, size - _MAX_LOG_BYTES)
        return os.pread(self._log.fileno(), _MAX_LOG_BYTES, start).decode(errors="replace")

    def error(self, last: dict[str, Any]) -> WorkerError:
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
            assert pipe is not None
            pipe.close()


def _environment(hidden: tuple[str, ...]) -> dict[str, str]:
    """Return the variables of this process except hidden ones, and limits on the threads of libraries."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((*_HIDDEN_VARIABLES, *hidden))
    }
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    return threads | kept


class Child:
    """One process and its scratch folder. Starts at once; a context manager.

    `preload`: modules that it imports before the first task. Raises StorageUnavailable if there is no
    disk space for the folder.
    """

    def __init__(self, limits: ChildLimits, preload: Sequence[str] = ()) -> None:
        self.limits = limits
        self.tasks = 0
        self.waited = 0.0
        self._preload = tuple(preload)
        self.scratch = ScratchFolder()
        self._process: _Process | None = None
        self.start()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Id of the process; None if none is running."""
        return None if self._process is None else self._process.popen.pid

    @property
    def resident_bytes(self) -> int:
        """Memory of the process that no other one shares; 0 if none is running, or the system does not say."""
        try:
            _, resident, shared, *_ = Path(f"/proc/{self.pid}/statm").read_text().split()
        except OSError:
            return 0
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")

    def start(self) -> None:
        """Start a process, if none is running, without waiting until it is ready."""
        if self._process is None:
            self._process = _STARTER.submit(_Process, self._preload, self.limits).result()

    def run(
        self,
        task: Callable[[RequestT, FrameWriter], None],
        request: RequestT,
        seconds: float | None = None,
    ) -> Generator[Frame]:
        """Yield the results of a task. Closing the generator ends the process.

        `seconds`: time limit, by default that of `limits`. Raises ChildCrashed; the error that the task
        raised, if it is one of the store or the dataset; otherwise TaskFailed.
        """
        self.start()
        process = self._process
        assert process is not None
        self.tasks += 1
        is_alive = False
        try:
            process.send(name_of(task), request, self.scratch.path)
            last = yield from self._results(process, seconds or self.limits.seconds)
            is_alive = True
        finally:
            if not is_alive:
                self.stop()
        if last.get(ERROR) is not None:
            raise process.error(last)

    def collect(
        self, task: Callable[[RequestT, FrameWriter], None], request: RequestT
    ) -> list[Frame]:
        """Return the results of `repeat_crash`, and empty the folder."""
        try:
            return self.repeat_crash(task, request)
        finally:
            self.scratch.clear()

    def repeat_crash(
        self, task: Callable[[RequestT, FrameWriter], None], request: RequestT
    ) -> list[Frame]:
        """Return all results of a task, which begins with an empty folder. A crash is repeated once.

        The machine may be the cause of a first crash. After a second one the file is at fault. Raises
        InvalidDataset then, and otherwise as `run`.
        """
        for is_last in (False, True):
            self.scratch.clear()
            try:
                return list(self.run(task, request))
            except ChildCrashed as error:
                if is_last:
                    step = error.step or "reading the files"
                    raise InvalidDataset(
                        f"{step} {error.reason}, twice: the file is damaged, or too large for this service"
                    ) from error
                logger.warning("%s %s\n%s", error.step, error.reason, error.log)
        raise AssertionError

    def kill(self) -> None:
        """Kill the process, from any thread: a task that runs raises ChildCrashed."""
        process = self._process
        if process is not None:
            process.popen.kill()

    def stop(self) -> None:
        """End the process. The folder stays; the next task starts another process."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def close(self) -> None:
        """End the process and remove its folder."""
        self.stop()
        self.scratch.close()

    def _results(self, process: _Process, seconds: float) -> Generator[Frame, None, dict[str, Any]]:
        """Yield results; return the header of the last frame."""
        step: str | int | None = None
        step_seconds: float | None = None
        while True:
            patience = seconds if step_seconds is None else min(seconds, step_seconds)
            began = time.monotonic()
            try:
                try:
                    frame = process.frames.read(patience)
                finally:
                    waited = time.monotonic() - began
                    self.waited += waited
                    seconds -= waited
            except TimedOut as error:
                reason = f"took more than {step_seconds or self.limits.seconds:g} s"
                raise ChildCrashed(step, reason, process.log()) from error
            except BadFrame as error:
                raise ChildCrashed(step, f"sent no results: {error}", process.log()) from error
            if frame is None:
                raise ChildCrashed(step, process.death(), process.log())
            header = frame.header
            if STEP in header:
                step, given = header[STEP], header.get("seconds")
                step = step if isinstance(step, int) else str(step)[:2000]
                step_seconds = float(given) if isinstance(given, int | float) else None
            elif header.get(ERROR) in _OUT_OF_MEMORY:
                raise ChildCrashed(step, process.memory_reason, process.log())
            elif DONE in header or ERROR in header:
                return header
            else:
                yield frame


class ChildPool:
    """Pool of children. Thread-safe.

    A child that parsed bytes of one owner serves that owner alone: code that took it over could read the
    bytes of another owner. At most one waits for its owner, and only while it has little memory.
    """

    def __init__(self, limits: ChildLimits, preload: Sequence[str] = ()) -> None:
        self._limits, self._preload = limits, preload
        self._lock = threading.Lock()
        self._spare: Child | None = Child(limits, preload)
        self._idle: tuple[str, Child] | None = None
        self._is_closed = False

    @contextmanager
    def borrow(self, owner: str) -> Iterator[Child]:
        """Lend a child for some tasks on bytes of one owner."""
        child = self._take(owner)
        try:
            yield child
        finally:
            self._give_back(owner, child)

    def close(self) -> None:
        """End all children; borrowed ones end when they are returned."""
        with self._lock:
            self._is_closed = True
            kept = [self._spare, self._idle[1] if self._idle else None]
            self._spare = self._idle = None
        for child in kept:
            if child is not None:
                child.close()

    def _take(self, owner: str) -> Child:
        with self._lock:
            idle, self._idle = self._idle, None
            if idle is not None and idle[0] == owner:
                return idle[1]
            child = self._spare or Child(self._limits, self._preload)
            self._spare = Child(self._limits, self._preload)
        if idle is not None:
            idle[1].close()
        return child

    def _give_back(self, owner: str, child: Child) -> None:
        with self._lock:
            leaving: Child | None = child
            is_small = child.resident_bytes <= _MOST_IDLE_BYTES
            if not self._is_closed and child.tasks < _MOST_TASKS and is_small:
                # The newest one is kept: its owner is the most likely to send more.
                leaving = self._idle[1] if self._idle else None
                self._idle = (owner, child)
                child.start()  # if its last task ended the process
        if leaving is not None:
            leaving.close()
