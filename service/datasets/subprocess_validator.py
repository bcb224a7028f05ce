"""Validate a dataset in a child process with bounds on its memory and its time.

Readers of file formats are large libraries, and users send damaged and hostile files. A crash must not take
down the control plane, which would crash again after each restart. A child that crashes is started once more:
the first time the machine may be the cause, the second time it is the file.

The child is `python -m service.datasets.subprocess_validator PARENT_PID`: a `ValidationRequest` on standard
input, lines of `ValidationMessage` on standard output. It imports neither the web server nor the database, so
that a small dataset does not wait for them.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from pydantic import ValidationError

from cmcl.contract.dataset import DatasetManifest
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
from cmcl.contract.modality import Frozen
from service.datasets.verify import CancelToken, ValidationTask, verify
from workers.storage.object_store import ObjectStore
from workers.storage.process_limits import bound, end_with
from workers.storage.uris import open_store

logger = logging.getLogger(__name__)

_ROOT = Path(__file__).parents[2]
_PROGRAM = "service.datasets.subprocess_validator"
_RAISED: dict[str, type[WorkerError]] = {
    error.__name__: error
    for error in (
        *(InvalidDataset, InvalidUri, InvalidVersion, StorageUnavailable),
        *(ObjectNotFound, ObjectExists, DigestMismatch),
    )
}
# Keys and addresses of the service stay out of a process that reads files of users.
_HIDDEN_VARIABLES = ("CMCL_", "RAY_", "OTEL_")
_MAX_TRIES = 2
_MAX_LOG_BYTES = 4000
_MIB = 1 << 20
# One part in five of the machine, or of its container: the service and other validations need memory as well.
_SHARE = 5
_MIN_MEMORY, _MAX_MEMORY = 512 * _MIB, 8192 * _MIB
_CGROUPS = ("memory.max", "memory/memory.limit_in_bytes")


class ValidationRequest(Frozen):
    """Standard input of the child: the task, and its bounds.

    `folder` is for copies of shards; `memory` in bytes, `seconds` of processor time.
    """

    store: str
    folder: str
    memory: int
    seconds: int
    task: ValidationTask


class ValidationMessage(Frozen):
    """A line of the child's standard output: the file that it reads next; last, a manifest or an error.

    `error` is the name of the exception's class.
    """

    reading: str | None = None
    manifest: DatasetManifest | None = None
    error: str | None = None
    message: str = ""


@dataclass(frozen=True)
class _Exit:
    """How a child exited; `crash` describes a crash, if it was one."""

    reading: str
    last: ValidationMessage
    status: int
    log: str
    crash: str | None = None


@dataclass(frozen=True)
class SubprocessValidator:
    """Validator that runs child processes. `seconds`: time for one dataset; `memory` in bytes."""

    seconds: float
    memory: int

    def validate(
        self, store: ObjectStore, task: ValidationTask, cancel_token: CancelToken
    ) -> DatasetManifest:
        """See `service.datasets.verify.Validator`."""
        crash = ""
        for _ in range(_MAX_TRIES):
            ended = self._run(store, task, cancel_token)
            if cancel_token.is_cancelled:
                raise StorageUnavailable("the validation was cancelled")
            if ended.crash is None:
                return _manifest_of(ended)
            crash = ended.crash
            logger.warning("dataset %s: %s\n%s", task.dataset, crash, ended.log)
        raise InvalidDataset(f"{crash}, twice: the file is damaged, or too large for this service")

    def _run(self, store: ObjectStore, task: ValidationTask, cancel_token: CancelToken) -> _Exit:
        """Run one child. Neither the process nor its copies of files outlive this call."""
        with (
            tempfile.TemporaryDirectory(prefix="cmcl-validate-") as folder,
            tempfile.TemporaryFile() as log,
            _child(log) as child,
        ):
            try:
                cancel_token.kill_on_cancel(child)
                request = self._request(store, folder, task)
                output, _ = child.communicate(request, timeout=self.seconds)
            except subprocess.TimeoutExpired as error:
                messages = _parse(error.output or b"")
                message = f"{_reading(messages)} did not finish within {self.seconds:g} s"
                raise InvalidDataset(f"{message}; send less in one dataset") from error
            finally:
                child.kill()
            return self._exit(child.returncode, _parse(output), log)

    def _request(self, store: ObjectStore, folder: str, task: ValidationTask) -> bytes:
        # Arrow reads in several threads, whose processor time adds up; the wall clock keeps the deadline.
        seconds = int(self.seconds * (os.cpu_count() or 1)) + 1
        request = ValidationRequest(
            store=store.uri, folder=folder, memory=self.memory, seconds=seconds, task=task
        )
        return request.model_dump_json().encode()

    def _exit(self, status: int, messages: Sequence[ValidationMessage], log: IO[bytes]) -> _Exit:
        log.seek(0)
        text = log.read()[-_MAX_LOG_BYTES:].decode(errors="replace")
        last = messages[-1] if messages else ValidationMessage()
        crash = None
        if status < 0:
            crash = f"{_reading(messages)} ended with {_signal_name(-status)}"
        elif last.error in ("MemoryError", "ArrowMemoryError"):
            crash = f"{_reading(messages)} took more than {self.memory // _MIB} MiB of memory"
        return _Exit(_reading(messages), last, status, text, crash)


def share_of_memory() -> int:
    """Bytes for one validation: a fifth of the memory of this machine or container, 8 GiB at most."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in _CGROUPS:
        try:
            total = min(total, int((Path("/sys/fs/cgroup") / name).read_text()))
        except (OSError, ValueError):
            # There is no such cgroup, or it has no bound ("max").
            continue
    return max(_MIN_MEMORY, min(_MAX_MEMORY, total // _SHARE))


def _child(log: IO[bytes]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", _PROGRAM, str(os.getpid())],
        cwd=_ROOT,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        # Ctrl-C in a terminal ends the control plane; for the child it would look like a crash.
        start_new_session=True,
    )


def _environment() -> dict[str, str]:
    """The variables that the object store needs, and bounds on the threads of libraries."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(_HIDDEN_VARIABLES)
    }
    return {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"} | kept


def _parse(output: bytes) -> list[ValidationMessage]:
    """The messages in the output; a process that was killed may have left half a line."""
    messages = []
    for line in output.splitlines():
        try:
            messages.append(ValidationMessage.model_validate_json(line))
        except ValidationError:
            logger.warning("incomplete message of a validation: %r", line[:100])
    return messages


def _reading(messages: Sequence[ValidationMessage]) -> str:
    uris = [message.reading for message in messages if message.reading is not None]
    return f"reading {uris[-1]}" if uris else "reading the shards"


def _manifest_of(ended: _Exit) -> DatasetManifest:
    """Return the manifest, or raise what the child raised."""
    last = ended.last
    if last.manifest is not None:
        return last.manifest
    if last.error in _RAISED:
        raise _RAISED[last.error](last.message)
    # A bug or a full disk: worth a retry until the start deadline.
    logger.error("%s ended with status %d\n%s", ended.reading, ended.status, ended.log)
    reason = last.error or f"status {ended.status}"
    raise StorageUnavailable(f"the shards could not be read ({reason}); see the log of the service")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main(parent: int) -> int:
    """Run the child. Exit status 0 if its last message is a result."""
    end_with(parent)
    output = _reserve_output()
    request = ValidationRequest.model_validate_json(sys.stdin.buffer.read())
    bound(request.memory, request.seconds)
    _send(output, _result(request, output))
    return 0


def _reserve_output() -> BinaryIO:
    """Standard output, for messages alone: what libraries print goes to standard error."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return output


def _result(request: ValidationRequest, output: BinaryIO) -> ValidationMessage:
    def report(uri: str) -> None:
        _send(output, ValidationMessage(reading=uri))

    try:
        manifest = verify(open_store(request.store), request.task, Path(request.folder), report)
    except Exception as error:  # noqa: BLE001
        # The parent decides what it means; the traceback goes to its log. Without memory there is none: from
        # Python 3.13 on, printing one parses the source, and its own failure would hide this error.
        if not isinstance(error, MemoryError):
            traceback.print_exc()
        return ValidationMessage(error=type(error).__name__, message=str(error))
    return ValidationMessage(manifest=manifest)


def _send(output: BinaryIO, message: ValidationMessage) -> None:
    output.write(message.model_dump_json(exclude_none=True).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
