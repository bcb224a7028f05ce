"""What the job of an attempt does with the resident group.

Imports are most of what such a process does: it loads Ray, or what writes its progress, where it must.
"""

import hashlib
import os
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import workers
from cmcl import contract
from cmcl.contract.methods import installed_methods
from workers.train.warm.connection import Connection, OverSocket
from workers.train.warm.desk import Answer, Attempt
from workers.train.warm.wire import Request, Setup, socket_path

# A job that stands in line waits for as long as ranks of its own would take to start; then it looks
# now and then whether the cluster has room for them.
_PATIENCE_SECONDS = 20.0
# An object store charges for every write, and a control plane is patient for minutes.
_TELL_SECONDS = 5.0
# What the results may depend on beside our own code.
_PACKAGES = ("torch", "ray", "numpy")


def learn_warm(request: Request) -> Answer | None:
    """The final answer of the resident group; None where the attempt needs ranks of its own.

    That is so if the group died, is made of something else, or is busy while the cluster has room.
    """
    try:
        with _known(request) or _looked_for(request) as connection:
            answer = _wait(connection, request)
    except OSError as error:
        print(f"the resident ranks cannot be used: {error}", flush=True)
        return None
    if answer is not None and answer.state == "elsewhere":
        note = f"this attempt starts ranks of its own: {answer.words}"
        print(note, flush=True)
        _tell(request.attempt, "starting", note)
        return None
    return answer


def setup_here(ranks: int, min_ranks: int, gpus_per_rank: float) -> Setup:
    """A group that runs the code that is installed here."""
    return Setup(_code(), ranks, min_ranks, gpus_per_rank)


def _known(request: Request) -> Connection | None:
    """To the resident of the cluster that Ray told this process of; None if none listens here."""
    address = os.environ.get("RAY_ADDRESS")
    return _to_socket(socket_path(address), request) if address else None


def _looked_for(request: Request) -> Connection:
    """Start the resident, or have it listen again. Raises OSError if that cannot be."""
    from workers.train.warm.start import OverRay, open_resident

    resident, path = open_resident(request.attempt.store_uri, request.setup, request.idle_seconds)
    return _to_socket(path, request) or OverRay(resident, request)


def _to_socket(path: Path, request: Request) -> Connection | None:
    """None where the resident is on another node, or there is none."""
    try:
        return OverSocket(path, request)
    except (FileNotFoundError, ConnectionRefusedError):
        return None


def _wait(connection: Connection, request: Request) -> Answer | None:
    """The final answer; None if the attempt need not wait. Raises OSError if the resident died."""
    answer = Answer("waiting")
    patient_until = time.monotonic() + _PATIENCE_SECONDS
    tell_at = 0.0
    while not answer.is_final:
        try:
            answer = connection.hear() or answer
        except TimeoutError:
            if answer.state == "waiting" and time.monotonic() >= tell_at:
                # The control plane takes an attempt that is silent for dead, and one in line is not.
                _tell(request.attempt, "waiting")
                tell_at = time.monotonic() + _TELL_SECONDS
            is_patient = answer.state != "waiting" or time.monotonic() < patient_until
            if not is_patient and _has_room(request.setup):
                return None
    return answer


def _tell(attempt: Attempt, phase: Literal["starting", "waiting"], note: str | None = None) -> None:
    from workers.train.warm.telling import tell

    tell(attempt, phase, note)


def _has_room(setup: Setup) -> bool:
    """Whether another group would fit beside the resident one."""
    from workers.train.warm.start import free_resources

    free: dict[str, Any] = free_resources()
    fits = free.get("CPU", 0.0) >= setup.min_ranks
    return bool(fits and free.get("GPU", 0.0) >= setup.min_ranks * setup.gpus_per_rank)


def _code() -> str:
    """A digest of the sources of the workers and of the contract, of the packages below them, and of
    methods of other packages."""
    digest = hashlib.blake2b(digest_size=16)
    for package in (workers, contract):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    for name in _PACKAGES:
        digest.update(f"{name}={version(name)}".encode())
    for name, point in sorted(installed_methods().items()):
        digest.update(f"{name}={point.value} {point.dist and point.dist.version}".encode())
        digest.update(_source_of(point.module))
    return digest.hexdigest()


def _source_of(module: str) -> bytes:
    """Of a method's module, which may have been edited in place; empty where it cannot be found."""
    try:
        spec = find_spec(module)
    except ImportError:
        return b""
    path = Path(spec.origin) if spec and spec.origin else None
    return path.read_bytes() if path and path.is_file() else b""
