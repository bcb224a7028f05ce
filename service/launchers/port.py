"""The port for launchers, which run a command under an id outside this process.

LauncherError
├── LauncherUnavailable     it did not respond; a retry can help
└── LauncherRefused         it refused the command
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from cmcl.contract.priority import Priority

_LONGEST = 2000


class LauncherError(Exception):
    """A launcher call failed."""


class LauncherUnavailable(LauncherError):
    """The launcher did not respond; a retry can help."""


class LauncherRefused(LauncherError):
    """The launcher refused the command.

    It may do so for a while after it has started, so callers retry for some time.
    """


@dataclass(frozen=True)
class Submission:
    """A command under an id, with what a cluster needs to schedule it.

    `ranks` are processes that the command starts on the cluster; 0 for a single process. Without
    room for all, it runs with `min_ranks`. `labels` are for people and for accounting; launchers
    ignore them.
    """

    id: str
    command: Sequence[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: Priority = "normal"
    ranks: int = 0
    min_ranks: int = 0
    gpus_per_rank: float = 0


class LaunchState(StrEnum):
    """The launcher's view. A complete candidate in object storage takes precedence over it."""

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
        return self.state not in (LaunchState.PENDING, LaunchState.RUNNING)


class Launcher(Protocol):
    """Every method may raise LauncherUnavailable."""

    def submit(self, submission: Submission) -> None:
        """Run its command at most once; a known id is a success.

        Raises LauncherRefused.
        """
        ...

    def status(self, submission_id: str) -> LaunchStatus:
        """Its current state."""
        ...

    def stop(self, submission_id: str) -> None:
        """Request its end; `status` shows when it has ended. An ended or unknown id is no error."""
        ...

    def forget(self, submission_id: str) -> None:
        """Delete the record of an ended submission; one that has not ended stays.

        The id is unknown afterwards, so only for what cannot be submitted again.
        """
        ...


def shortened(message: str) -> str:
    """Shorten the middle: Ray appends the end of the log, and its last lines give the cause."""
    if len(message) <= _LONGEST:
        return message
    first, _, rest = message.partition("\n")
    return f"{first[:_LONGEST]}\n…{rest[-_LONGEST:]}"
