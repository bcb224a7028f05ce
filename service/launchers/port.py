"""The port for launchers, which run a command under an id outside this process, and what watches one.

LauncherError
├── LauncherUnavailable     it did not respond; a retry can help
└── LauncherRejected        it rejected the command
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from cmcl.contract.job import AttemptRequest
from cmcl.contract.methods import Priority

_LONGEST = 2000
# Limit of the end of a log. A traceback with its frames takes a few kilobytes.
LOG_LINES, LOG_BYTES = 1000, 64 << 10
# Longest wait for a log, which no job needs to continue.
LOG_SECONDS = 5

# A failed call that took longer than this was hanging.
_SLOW_SECONDS = 2.0
_PAUSE_SECONDS = 15.0
# How long the resources of a cluster are cached.
_RESOURCES_SECONDS = 30.0
# A submission that was not requested for this long has ended, or another instance watches it.
_ASKED_SECONDS = 60.0

# Times a call: its name, and the id of the submission or an empty text.
Measure = Callable[[str, str], AbstractContextManager[None]]


class LauncherError(Exception):
    """A launcher call failed."""


class LauncherUnavailable(LauncherError):
    """The launcher did not respond; a retry can help."""


class LauncherRejected(LauncherError):
    """The launcher rejected the command.

    It may do so for a while after it has started, so callers retry for some time.
    """


@dataclass(frozen=True)
class Submission:
    """A command under an id, with what a cluster needs to schedule it.

    `ranks` are processes that the command starts on the cluster; 0 for a single process. Without
    room for all, it runs with `min_ranks`. `queue`: of the cluster, in which it waits by `priority`; empty: none.
    `memory_per_pod`: bytes that processes may reserve in a pod with
    ranks; 0: its limit. `labels` are for people and for accounting; launchers ignore them. `attempt`: what the command
    trains, for a launcher that has it trained without a command.
    """

    id: str
    command: Sequence[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    queue: str = ""
    priority: Priority = "normal"
    ranks: int = 0
    min_ranks: int = 0
    gpus_per_rank: float = 0
    memory_per_pod: int = 0
    attempt: AttemptRequest | None = None


class LaunchState(StrEnum):
    """The launcher's view. A complete candidate in object storage takes precedence over it."""

    QUEUED = "queued"  # waits in a queue of the cluster, for as long as it takes; also after it was evicted
    PENDING = "pending"  # accepted, not started yet
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # exit code 0
    FAILED = "failed"  # another exit code, or lost
    STOPPED = "stopped"  # on request
    UNKNOWN = "unknown"  # the launcher does not know it


@dataclass(frozen=True)
class LaunchStatus:
    """The state, and the launcher's message (may be empty)."""

    state: LaunchState
    message: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs, as far as the launcher can see."""
        return self.state not in (LaunchState.QUEUED, LaunchState.PENDING, LaunchState.RUNNING)


@dataclass(frozen=True)
class ClusterResources:
    """What all nodes of a cluster have together, in use or free."""

    cpus: float
    gpus: float
    memory_bytes: float


class Launcher(Protocol):
    """Every method may raise LauncherUnavailable."""

    def submit(self, submission: Submission) -> None:
        """Run its command at most once; a known id is a success.

        Raises LauncherRejected.
        """
        ...

    def statuses(self, submission_ids: Iterable[str]) -> dict[str, LaunchStatus]:
        """Return the current state of each of them, in one request."""
        ...

    def stop(self, submission_id: str) -> None:
        """Request its end; `statuses` shows when it has ended. An ended or unknown id is no error."""
        ...

    def forget(self, submission_id: str) -> None:
        """Delete the record of an ended submission; one that has not ended stays.

        The id is unknown afterwards, so only for what cannot be submitted again.
        """
        ...

    def log(self, submission_id: str) -> str:
        """The end of what its command has printed: at most LOG_LINES and LOG_BYTES. Empty if there is none.

        It takes a few seconds at most.
        """
        ...

    def resources(self) -> ClusterResources | None:
        """What its cluster has; None if nodes are added as they are needed. It takes a few seconds at most."""
        ...


def status_of(launcher: Launcher, submission_id: str) -> LaunchStatus:
    return launcher.statuses([submission_id])[submission_id]


def shortened(message: str) -> str:
    """Shorten the middle: Ray appends the end of the log, and its last lines give the cause."""
    if len(message) <= _LONGEST:
        return message
    first, _, rest = message.partition("\n")
    return f"{first[:_LONGEST]}\n…{rest[-_LONGEST:]}"


def end_of_log(pieces: Iterable[bytes]) -> str:
    """The last LOG_BYTES of a log that is read in pieces, as text that begins with a whole line if it has one."""
    end, is_cut = b"", False
    for piece in pieces:
        end += piece
        if len(end) > LOG_BYTES:
            end, is_cut = end[-LOG_BYTES:], True
    if is_cut:
        first, newline, rest = end.partition(b"\n")
        end = rest if newline and rest else first
    # A character that was cut in two would be longer as its replacement.
    return end.decode(errors="ignore").replace("\0", "")


class WatchedLauncher:
    """A launcher around another one: calls are measured, fail fast while that one hangs, and share its lists.

    A few workers serve all models. If a cluster is down, a call fails at once; but if it hangs, each call takes
    half a minute, and a hundred running jobs would delay everything else, such as storing and promoting complete
    versions, by minutes. So after a call that hung, others fail at once for a while (a circuit breaker).

    `statuses` is answered from the last list for `ttl` seconds, for all callers together. A list names all submissions
    that were asked about within the last minute, so that those who ask about different ones share it. What this process
    submits or stops is listed again. A submission that was not asked about before is listed at once: the last list may be
    older than it. `seconds` is a monotonic clock; `measure` gets the name of a call and the id of a submission.
    """

    def __init__(
        self,
        launcher: Launcher,
        ttl: float,
        seconds: Callable[[], float] = time.monotonic,
        measure: Measure = lambda _call, _id: nullcontext(),
    ) -> None:
        self._launcher = launcher
        self._ttl = ttl
        self._seconds = seconds
        self._measure = measure
        self._open_until = float("-inf")
        self._why = ""
        self._resources: ClusterResources | None = None
        self._resources_until = float("-inf")
        self._listing = threading.Lock()
        self._known: dict[str, LaunchStatus] = {}
        self._listed_at = float("-inf")
        self._asked_at: dict[str, float] = {}

    def submit(self, submission: Submission) -> None:
        with self._watched("submit", submission.id):
            self._launcher.submit(submission)
        self._known.pop(submission.id, None)

    def statuses(self, submission_ids: Iterable[str]) -> dict[str, LaunchStatus]:
        """See the port. Raises LauncherUnavailable as well while another call hangs."""
        wanted, now = list(submission_ids), self._seconds()
        self._asked_at.update(dict.fromkeys(wanted, now))
        found = self._found(wanted)
        if found is not None:
            return found
        if not self._listing.acquire(timeout=_SLOW_SECONDS):
            raise LauncherUnavailable("the launcher has not answered an earlier request")
        try:
            return self._found(wanted) or self._list(wanted)
        finally:
            self._listing.release()

    def stop(self, submission_id: str) -> None:
        with self._watched("stop", submission_id):
            self._launcher.stop(submission_id)
        self._known.pop(submission_id, None)

    def forget(self, submission_id: str) -> None:
        with self._watched("forget", submission_id):
            self._launcher.forget(submission_id)
        self._known.pop(submission_id, None)

    def log(self, submission_id: str) -> str:
        """See the port. Its failures do not fail other calls: a log may be out of reach while the rest responds."""
        self._check_closed()
        with self._measure("log", submission_id):
            return self._launcher.log(submission_id)

    def resources(self) -> ClusterResources | None:
        """See the port. Cached: nodes come and go slowly. While the cluster does not respond, what it had before counts."""
        if self._seconds() >= self._resources_until:
            try:
                with self._watched("resources"):
                    self._resources = self._launcher.resources()
            except LauncherUnavailable:
                if self._resources is None:
                    raise
            self._resources_until = self._seconds() + _RESOURCES_SECONDS
        return self._resources

    def _found(self, wanted: list[str]) -> dict[str, LaunchStatus] | None:
        """What the last list says; None if it is too old, or does not name all of them."""
        known = self._known
        if self._seconds() - self._listed_at >= self._ttl:
            return None
        found = {name: known[name] for name in wanted if name in known}
        return found if len(found) == len(set(wanted)) else None

    def _list(self, wanted: list[str]) -> dict[str, LaunchStatus]:
        began = self._seconds()
        asked = self._asked_at.copy()
        names = {name for name, at in asked.items() if began - at < _ASKED_SECONDS} | set(wanted)
        self._asked_at = {name: at for name, at in asked.items() if name in names}
        with self._watched("statuses"):
            self._known = self._launcher.statuses(names)
        self._listed_at = began
        return {name: self._known[name] for name in wanted}

    def _check_closed(self) -> None:
        if self._seconds() < self._open_until:
            raise LauncherUnavailable(self._why)

    @contextmanager
    def _watched(self, call: str, submission_id: str = "") -> Iterator[None]:
        self._check_closed()
        began = self._seconds()
        try:
            with self._measure(call, submission_id):
                yield
        except LauncherUnavailable as error:
            now = self._seconds()
            if now - began >= _SLOW_SECONDS:
                self._open_until, self._why = now + _PAUSE_SECONDS, str(error)
            raise
