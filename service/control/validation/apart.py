"""A validation in a process of its own, with bounds on its memory and its time.

Readers of files are large libraries, and people send damaged and hostile files. A control plane that
fell over one would fall over it again after every restart. So it is the child that falls, twice: the
first time the machine may be to blame, the second time it is the file.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

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
from service.control.validation.task import Errand, Leash, ValidationTask, Word
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

_PACKAGES = Path(__file__).parents[3]
_PROGRAM = "service.control.validation.child"
_RAISED: dict[str, type[WorkerError]] = {
    error.__name__: error
    for error in (
        *(InvalidDataset, InvalidUri, InvalidVersion, StorageUnavailable),
        *(ObjectNotFound, ObjectExists, DigestMismatch),
    )
}
# The service's keys and addresses are no business of a process that reads strangers' files.
_SECRETS = ("CMCL_", "RAY_", "OTEL_")
_CHANCES = 2
_LONGEST_COMPLAINT = 4000
_MIB = 1 << 20
# Of the machine, or of what its container may use: the service itself needs some, and so do others.
_SHARE = 5
_LEAST_MEMORY, _MOST_MEMORY = 512 * _MIB, 8192 * _MIB
_CGROUPS = ("memory.max", "memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class _Ended:
    """How a process ended; `fell` says what it fell over, if it did."""

    reading: str
    last: Word
    status: int
    complaints: str
    fell: str | None = None


@dataclass(frozen=True)
class Apart:
    """Validates in child processes of this one. `seconds`: a dataset's time; `memory` in bytes."""

    seconds: float
    memory: int

    def read(self, store: ObjectStore, task: ValidationTask, leash: Leash) -> DatasetManifest:
        """See the port, `service.control.validation.task.Reader`."""
        fell = ""
        for _ in range(_CHANCES):
            ended = self._once(store, task, leash)
            if leash.is_cut:
                raise StorageUnavailable("nobody waits for this validation any more")
            if ended.fell is None:
                return _judge(ended)
            fell = ended.fell
            logger.warning("dataset %s: %s\n%s", task.dataset, fell, ended.complaints)
        raise InvalidDataset(f"{fell}, twice: the file is damaged, or too large for this service")

    def _once(self, store: ObjectStore, task: ValidationTask, leash: Leash) -> _Ended:
        """Whatever happens, neither the process nor its copies of files outlive this."""
        with (
            tempfile.TemporaryDirectory(prefix="cmcl-validate-") as folder,
            tempfile.TemporaryFile() as complaints,
            _child(complaints) as child,
        ):
            try:
                leash.hold(child)
                errand = self._errand(store, folder, task)
                said, _ = child.communicate(errand, timeout=self.seconds)
            except subprocess.TimeoutExpired as error:
                words = _words(error.output or b"")
                message = f"{_reading(words)} was not done after {self.seconds:g} s"
                raise InvalidDataset(f"{message}; send less in one dataset") from error
            finally:
                child.kill()
            return self._ended(child.returncode, _words(said), complaints)

    def _errand(self, store: ObjectStore, folder: str, task: ValidationTask) -> bytes:
        # Arrow reads with several threads, whose time adds up; the deadline is kept by the clock.
        seconds = int(self.seconds * (os.cpu_count() or 1)) + 1
        errand = Errand(
            store=store.uri, folder=folder, memory=self.memory, seconds=seconds, task=task
        )
        return errand.model_dump_json().encode()

    def _ended(self, status: int, words: Sequence[Word], complaints: IO[bytes]) -> _Ended:
        complaints.seek(0)
        text = complaints.read()[-_LONGEST_COMPLAINT:].decode(errors="replace")
        last = words[-1] if words else Word()
        fell = None
        if status < 0:
            fell = f"{_reading(words)} ended with {_signal_name(-status)}"
        elif last.error in ("MemoryError", "ArrowMemoryError"):
            fell = f"{_reading(words)} took more than {self.memory // _MIB} MiB of memory"
        return _Ended(_reading(words), last, status, text, fell)


def share_of_memory() -> int:
    """Bytes for one validation: a fifth of what this machine, or container, has; 8 GiB at most."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in _CGROUPS:
        try:
            total = min(total, int((Path("/sys/fs/cgroup") / name).read_text()))
        except (OSError, ValueError):
            # No such cgroup, or it has no bound ("max").
            continue
    return max(_LEAST_MEMORY, min(_MOST_MEMORY, total // _SHARE))


def _child(complaints: IO[bytes]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", _PROGRAM, str(os.getpid())],
        cwd=_PACKAGES,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        # Ctrl-C in a terminal ends the control plane; it says nothing about the file.
        start_new_session=True,
    )


def _environment() -> dict[str, str]:
    """What the object store needs to know, and no more threads than shards have columns."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SECRETS)}
    return {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"} | kept


def _words(said: bytes) -> list[Word]:
    """What it said; a process that was killed may have left half a line."""
    words = []
    for line in said.splitlines():
        try:
            words.append(Word.model_validate_json(line))
        except ValidationError:
            logger.warning("a validation said half a word: %r", line[:100])
    return words


def _reading(words: Sequence[Word]) -> str:
    uris = [word.reading for word in words if word.reading is not None]
    return f"reading {uris[-1]}" if uris else "reading the shards"


def _judge(ended: _Ended) -> DatasetManifest:
    """The manifest, or what was raised."""
    last = ended.last
    if last.manifest is not None:
        return last.manifest
    if last.error in _RAISED:
        raise _RAISED[last.error](last.words)
    # A mistake of ours, or a full disk: to be tried again, and not for ever.
    logger.error("%s ended with status %d\n%s", ended.reading, ended.status, ended.complaints)
    why = last.error or f"status {ended.status}"
    raise StorageUnavailable(f"the shards could not be read ({why}); the log says why")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
