"""How the job of an attempt speaks with the resident: one line of JSON up, some lines down.

Through a Unix socket, because Ray's own ways cost the job most of a second for imports, and because
the kernel closes it when the job dies: that is how the resident knows. Jobs run on the resident's
node, the head, unless a site gives its drivers other places: then the same lines travel through Ray.
"""

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from cmcl.contract.priority import Priority
from workers.train.warm.desk import PRIORITIES, Answer, Attempt

_SETTINGS = {
    "ranks": "CMCL_RANKS",
    "min_ranks": "CMCL_MIN_RANKS",
    "gpus_per_rank": "CMCL_GPUS_PER_RANK",
}


@dataclass(frozen=True)
class Setup:
    """What a group of ranks is made of; another setup is another group."""

    code: str
    ranks: int
    min_ranks: int
    gpus_per_rank: float

    def differences(self, wanted: "Setup") -> str:
        """What an attempt wants that this group is not, by the names of settings; empty: nothing."""
        found = [
            f"{_SETTINGS[name]} is {ours} for the ranks that stay and {theirs} for this attempt"
            for name, ours in asdict(self).items()
            if name != "code" and ours != (theirs := getattr(wanted, name))
        ]
        if self.code != wanted.code:
            found.append("the ranks that stay run another release of cmcl, torch, ray or numpy")
        return "; ".join(found)


@dataclass(frozen=True)
class Request:
    """The attempt that a job wants, the group that it wants for it, and how much it wants it.

    `idle_seconds`: how long the group is to stay afterwards without another; 0 for ever.
    """

    attempt: Attempt
    setup: Setup
    priority: Priority = "normal"
    idle_seconds: float = 0.0

    def to_line(self) -> bytes:
        """One line."""
        return _line(self)

    @classmethod
    def from_line(cls, line: bytes) -> "Request":
        """Raises ValueError, TypeError or KeyError for anything else."""
        told = json.loads(line)
        priority = told["priority"]
        if priority not in PRIORITIES:
            raise ValueError(f"priority is {priority!r}; it must be one of {PRIORITIES}")
        setup, idle_seconds = Setup(**told["setup"]), float(told["idle_seconds"])
        return cls(Attempt(**told["attempt"]), setup, priority, idle_seconds)


def answer_to_line(answer: Answer) -> bytes:
    """One line."""
    return _line(answer)


def answer_from_line(line: bytes) -> Answer:
    """Raises ValueError or TypeError for anything else."""
    return Answer(**json.loads(line))


def socket_path(ray_address: str) -> Path:
    """The socket of the resident on the cluster at `host:port`, in a folder that is ours alone.

    Raises PermissionError where somebody else made the folder.
    """
    folder = Path(tempfile.gettempdir()) / f"cmcl-ranks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not ours alone; remove it")
    return folder / f"{ray_address.rpartition(':')[2]}.sock"


def _line(message: Request | Answer) -> bytes:
    return json.dumps(asdict(message)).encode() + b"\n"
