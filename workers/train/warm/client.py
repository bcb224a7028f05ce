"""What the job of an attempt does with the resident group. It imports Ray only where it must."""

import hashlib
import os
import socket
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import workers
from workers.contract.errors import StorageUnavailable
from workers.contract.job import Progress
from workers.storage.layout import run_progress
from workers.storage.uris import open_store
from workers.train.warm.desk import Answer, Attempt
from workers.train.warm.wire import Request, Setup, answer_from_line, socket_path

# A job that stands in line waits for as long as ranks of its own would take to start; then it looks
# now and then whether the cluster has room for them.
_PATIENCE_SECONDS = 20.0
_LOOK_SECONDS = 1.0
# An object store charges for every write, and a control plane is patient for minutes.
_TELL_SECONDS = 5.0
# What the results may depend on beside our own code.
_PACKAGES = ("cmcl", "torch", "ray", "numpy")


def learn_warm(request: Request) -> Answer | None:
    """The final answer of the resident group; None where the attempt needs ranks of its own.

    That is so if the group died, is made of something else, or is busy while the cluster has room.
    """
    try:
        connection = _connect() or _look_for_it(request)
        with connection:
            connection.sendall(request.to_line())
            answer = _wait(connection, request)
    except OSError as error:
        print(f"the resident ranks cannot be used: {error}", flush=True)
        return None
    return None if answer is None or answer.state == "elsewhere" else answer


def setup_here(ranks: int, min_ranks: int, gpus_per_rank: float) -> Setup:
    """A group that runs the code that is installed here."""
    return Setup(_code(), ranks, min_ranks, gpus_per_rank)


def _connect() -> socket.socket | None:
    """The resident of the cluster that Ray told this process of; None if none listens."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return None
    try:
        return _connected(socket_path(address))
    except (FileNotFoundError, ConnectionRefusedError):
        return None


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _look_for_it(request: Request) -> socket.socket:
    """Start the resident, or have it listen again. Raises OSError if that cannot be."""
    from workers.train.warm.start import open_resident

    uri, idle_seconds = request.attempt.store_uri, request.idle_seconds
    return _connected(open_resident(uri, request.setup, idle_seconds))


def _wait(connection: socket.socket, request: Request) -> Answer | None:
    """The final answer; None if the attempt need not wait. Raises OSError if the resident died."""
    connection.settimeout(_LOOK_SECONDS)
    answer, received = Answer("waiting"), b""
    patient_until = time.monotonic() + _PATIENCE_SECONDS
    tell_at = 0.0
    while not answer.is_final:
        try:
            received += _received(connection)
        except TimeoutError:
            if answer.state == "waiting" and time.monotonic() >= tell_at:
                _tell_that_it_waits(request.attempt)
                tell_at = time.monotonic() + _TELL_SECONDS
            is_patient = answer.state != "waiting" or time.monotonic() < patient_until
            if not is_patient and _has_room(request.setup):
                return None
        *lines, received = received.split(b"\n")
        for line in lines:
            answer = answer_from_line(line)
    return answer


def _tell_that_it_waits(attempt: Attempt) -> None:
    """The control plane takes an attempt that is silent for dead, and one in line is not."""
    store = open_store(attempt.store_uri)
    progress = Progress(phase="waiting", at=datetime.now(UTC))
    try:
        store.put(run_progress(attempt.job, attempt.attempt), progress.model_dump_json().encode())
    except StorageUnavailable as error:
        print(f"that it waits was not written: {error}", flush=True)


def _received(connection: socket.socket) -> bytes:
    received = connection.recv(1 << 16)
    if not received:
        raise ConnectionError("they ended")
    return received


def _has_room(setup: Setup) -> bool:
    """Whether another group would fit beside the resident one."""
    from workers.train.warm.start import free_resources

    free: dict[str, Any] = free_resources()
    fits = free.get("CPU", 0.0) >= setup.min_ranks
    return bool(fits and free.get("GPU", 0.0) >= setup.min_ranks * setup.gpus_per_rank)


def _code() -> str:
    """A digest of the workers' sources and of the packages below them."""
    digest = hashlib.blake2b(digest_size=16)
    root = Path(workers.__path__[0])
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    for package in _PACKAGES:
        digest.update(f"{package}={version(package)}".encode())
    return digest.hexdigest()
