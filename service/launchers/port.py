"""The port for launchers: something that runs a command under an id, apart from this process.

LauncherError
├── LauncherUnavailable     it did not answer; a retry can help
└── LauncherRefused         it answered, and did not take the command
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from cmcl.contract.priority import Priority

_LONGEST = 2000


class LauncherError(Exception):
    """A launcher could not do what it was asked."""


class LauncherUnavailable(LauncherError):
    """The launcher did not answer; trying again can help."""


class LauncherRefused(LauncherError):
    """The launcher answered and did not take the command.

    It may do so for a while when it has only just started, so callers ask for some time before
    they give up.
    """


@dataclass(frozen=True)
class Submission:
    """A command under an id, with what a cluster may need to find room for it.

    `ranks` are processes that the command starts on the cluster; 0 for one that works by itself.
    Where there is no room for all, it goes on with `min_ranks`. `labels` are for people and for the
    site's own accounting: no launcher acts on them.
    """

    id: str
    command: Sequence[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: Priority = "normal"
    ranks: int = 0
    min_ranks: int = 0
    gpus_per_rank: float = 0


class LaunchState(StrEnum):
    """What the launcher believes. A complete candidate in object storage is believed before it."""

    PENDING = "pending"  # accepted, not started yet
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # exit code 0
    FAILED = "failed"  # another exit code, or lost
    STOPPED = "stopped"  # on request
    UNKNOWN = "unknown"  # the launcher has never heard of it


@dataclass(frozen=True)
class LaunchStatus:
    """The state, and the launcher's own words about it (may be empty)."""

    state: LaunchState
    message: str = ""

    @property
    def has_ended(self) -> bool:
        """Nothing of it runs, as far as the launcher knows."""
        return self.state not in (LaunchState.PENDING, LaunchState.RUNNING)


class Launcher(Protocol):
    """Every method may raise LauncherUnavailable."""

    def submit(self, submission: Submission) -> None:
        """Run its command, at most once: an id that is known already is a success.

        Raises LauncherRefused.
        """
        ...

    def status(self, submission_id: str) -> LaunchStatus:
        """What became of it."""
        ...

    def stop(self, submission_id: str) -> None:
        """Ask it to end; `status` tells when it has. An ended or unknown id is no error."""
        ...

    def forget(self, submission_id: str) -> None:
        """Drop what is kept of one that has ended long ago; one that has not ended stays.

        Its id is unknown from then on, so only for what nobody can submit again.
        """
        ...


def shortened(message: str) -> str:
    """Ray adds the end of the log: the first line says what happened, the last ones say why."""
    if len(message) <= _LONGEST:
        return message
    first, _, rest = message.partition("\n")
    return f"{first[:_LONGEST]}\n…{rest[-_LONGEST:]}"
