"""How the job of an attempt talks to the pool: one line of JSON up, some lines down.

Through a Unix socket, because Ray's own calls cost the job most of a second for imports, and because
the kernel closes the socket when the job dies, which is how the pool notices. Jobs run on the node of
the pool's actor, the head, unless a site schedules drivers elsewhere: then the same lines go through
Ray (`actor.RayConnection`).

This module imports neither Ray nor torch: a job of a pool loads both for nothing.
"""

import argparse
import json
import os
import socket
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, Self

from workers.train.pool.queue import Attempt, AttemptStatus

# Name of the pool's actor on a Ray cluster.
ACTOR_NAME, NAMESPACE = "cmcl-pool", "cmcl"
# GPUs that are not used cost as much as others; the next attempt starts its ranks in half a minute.
IDLE_SECONDS = 1800.0
# How long a job waits for a new status before it checks what else to do.
POLL_SECONDS = 1.0
_SETTINGS = {
    "ranks": "CMCL_RANKS",
    "min_ranks": "CMCL_MIN_RANKS",
    "gpus_per_rank": "CMCL_GPUS_PER_RANK",
}


@dataclass(frozen=True)
class PoolSetup:
    """What a group of ranks consists of. Another setup needs another group."""

    code: str
    ranks: int
    min_ranks: int
    gpus_per_rank: float

    def differences(self, wanted: "PoolSetup") -> str:
        """How the setup that an attempt wants differs, by names of settings; empty if it does not."""
        found = [
            f"{_SETTINGS[name]} is {ours} in the pool and {theirs} for this attempt"
            for name, ours in asdict(self).items()
            if name != "code" and ours != (theirs := getattr(wanted, name))
        ]
        if self.code != wanted.code:
            found.append("the pool runs another release of cmcl, torch, ray or numpy")
        return "; ".join(found)


@dataclass(frozen=True)
class Request:
    """An attempt, the setup that its job asks for, and the owner of the job.

    `idle_seconds`: how long the pool stays without a further attempt; 0: permanently.
    """

    attempt: Attempt
    setup: PoolSetup
    owner: str = "default"
    idle_seconds: float = 0.0

    def to_line(self) -> bytes:
        """Encode as one line."""
        return _line(self)

    @classmethod
    def from_line(cls, line: bytes) -> "Request":
        """Decode a line. Raises ValueError, TypeError or KeyError if it is no request."""
        fields = json.loads(line)
        setup, idle_seconds = PoolSetup(**fields["setup"]), float(fields["idle_seconds"])
        return cls(Attempt(**fields["attempt"]), setup, str(fields["owner"]), idle_seconds)


def status_to_line(status: AttemptStatus) -> bytes:
    """Encode as one line."""
    return _line(status)


def status_from_line(line: bytes) -> AttemptStatus:
    """Decode a line. Raises ValueError or TypeError if it is no status."""
    return AttemptStatus(**json.loads(line))


def _line(message: Request | AttemptStatus) -> bytes:
    return json.dumps(asdict(message)).encode() + b"\n"


def socket_path(ray_address: str) -> Path:
    """The pool's socket on the cluster at `host:port`, in a folder private to this user.

    Raises PermissionError if another user owns or can read the folder.
    """
    folder = Path(tempfile.gettempdir()) / f"cmcl-ranks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not private to this user; remove it")
    return folder / f"{ray_address.rpartition(':')[2]}.sock"


class Connection(Protocol):
    """A connection of a job to the pool. Leaving the `with` block disconnects the job."""

    def receive(self) -> AttemptStatus | None:
        """The latest status, or None if no complete one has arrived.

        Raises TimeoutError after POLL_SECONDS, and OSError if the pool is gone.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class SocketConnection:
    """Connection to a pool on this node. Raises OSError if nothing listens at the path."""

    def __init__(self, path: Path, request: Request) -> None:
        self._socket, self._received = socket.socket(socket.AF_UNIX), b""
        try:
            self._socket.connect(str(path))
            self._socket.sendall(request.to_line())
            self._socket.settimeout(POLL_SECONDS)
        except OSError:
            self._socket.close()
            raise

    def receive(self) -> AttemptStatus | None:
        """See `Connection`."""
        received = self._socket.recv(1 << 16)
        if not received:
            raise ConnectionError("the pool has ended")
        *lines, self._received = (self._received + received).split(b"\n")
        return status_from_line(lines[-1]) if lines else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def add_pool_options(parser: argparse.ArgumentParser) -> None:
    """Add --ranks, --min-ranks, --gpus-per-rank and --idle-seconds."""
    parser.add_argument("--ranks", type=int, default=1, help="processes that share the batch")
    parser.add_argument(
        "--min-ranks",
        type=int,
        help="the fewest ranks to continue with if resources are missing (default: --ranks)",
    )
    parser.add_argument("--gpus-per-rank", type=float, default=0.0)
    parser.add_argument(
        "--idle-seconds",
        type=float,
        default=IDLE_SECONDS,
        help="the pool ends after this long without an attempt; 0: never",
    )


def check_pool_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Fill in defaults; exit with a message for values that are out of range."""
    if arguments.ranks < 1:
        parser.error(f"--ranks is {arguments.ranks}; it must be 1 or more")
    if arguments.min_ranks is None:
        arguments.min_ranks = arguments.ranks
    if not 1 <= arguments.min_ranks <= arguments.ranks:
        parser.error(
            f"--min-ranks is {arguments.min_ranks}; it must be from 1 to --ranks, "
            f"which is {arguments.ranks}"
        )
    for name in ("gpus_per_rank", "idle_seconds"):
        value = getattr(arguments, name)
        if not value >= 0:
            parser.error(f"--{name.replace('_', '-')} is {value:g}; it must be 0 or more")
