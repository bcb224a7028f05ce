"""What the job of an attempt does with the pool.

Imports take most of the time of such a process, so Ray, and what writes progress, are imported only
where they are needed.
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
from workers.train.pool.protocol import (
    Connection,
    PoolSetup,
    Request,
    SocketConnection,
    socket_path,
)
from workers.train.pool.queue import Attempt, AttemptStatus

# An attempt waits in the queue for as long as ranks of its own would take to start. Then the job
# checks now and then whether the cluster has resources for them.
_QUEUE_SECONDS = 20.0
# Object stores charge for every write, and the control plane waits for minutes.
_REPORT_SECONDS = 5.0
# Packages that results may depend on, besides our own code.
_PACKAGES = ("torch", "ray", "numpy")


def train_in_pool(request: Request) -> AttemptStatus | None:
    """Return the final status, or None if the attempt needs ranks of its own.

    It needs them if the pool died, has another setup, or is busy while the cluster has resources.
    """
    try:
        with _connect(request) or _start_and_connect(request) as connection:
            status = _wait(connection, request)
    except OSError as error:
        print(f"the pool of ranks cannot be used: {error}", flush=True)
        return None
    if status is not None and status.state == "rejected":
        note = f"this attempt starts its own ranks: {status.message}"
        print(note, flush=True)
        _report(request.attempt, "starting", note)
        return None
    return status


def current_setup(ranks: int, min_ranks: int, gpus_per_rank: float) -> PoolSetup:
    """The setup of a pool that runs the code that is installed here."""
    return PoolSetup(_code_digest(), ranks, min_ranks, gpus_per_rank)


def _connect(request: Request) -> Connection | None:
    """Connect to the pool of the cluster in RAY_ADDRESS; None if none listens on this node."""
    address = os.environ.get("RAY_ADDRESS")
    return _socket_connection(socket_path(address), request) if address else None


def _start_and_connect(request: Request) -> Connection:
    """Start the pool, or make it listen again. Raises OSError if it cannot be used."""
    from workers.train.pool.actor import RayConnection, open_actor

    _report(request.attempt, "starting", "the training ranks are starting")
    actor, path = open_actor(request.attempt.store_uri, request.setup, request.idle_seconds)
    return _socket_connection(path, request) or RayConnection(actor, request)


def _socket_connection(path: Path, request: Request) -> Connection | None:
    """None if the pool's actor is on another node, or there is none."""
    try:
        return SocketConnection(path, request)
    except (FileNotFoundError, ConnectionRefusedError):
        return None


def _wait(connection: Connection, request: Request) -> AttemptStatus | None:
    """Wait for the final status; None if the attempt need not wait. Raises OSError if the pool dies."""
    status = AttemptStatus("waiting")
    deadline = time.monotonic() + _QUEUE_SECONDS
    report_at = 0.0
    while not status.is_final:
        try:
            status = connection.receive() or status
            if not status.is_final and status.message:
                _report(request.attempt, "starting", status.message)
        except TimeoutError:
            if status.state == "waiting" and time.monotonic() >= report_at:
                # The control plane takes an attempt without progress for dead.
                _report(request.attempt, "waiting")
                report_at = time.monotonic() + _REPORT_SECONDS
            keeps_waiting = status.state != "waiting" or time.monotonic() < deadline
            if not keeps_waiting and _has_resources(request.setup):
                return None
    return status


def _report(
    attempt: Attempt, phase: Literal["starting", "waiting"], note: str | None = None
) -> None:
    """Write the progress of an attempt without ranks. A failed write does not end the attempt."""
    from datetime import UTC, datetime

    from cmcl.contract.errors import StorageUnavailable
    from cmcl.contract.job import Progress
    from workers.storage.running import ProgressWriter
    from workers.storage.uris import open_store

    progress = Progress(phase=phase, note=note, at=datetime.now(UTC))
    store = open_store(attempt.store_uri)
    try:
        ProgressWriter(store, attempt.job, attempt.attempt).write(progress)
    except StorageUnavailable as error:
        print(f"progress was not written: {error}", flush=True)


def _has_resources(setup: PoolSetup) -> bool:
    """Whether the cluster has resources for another group."""
    from workers.train.pool.actor import free_resources

    free: dict[str, Any] = free_resources()
    fits = free.get("CPU", 0.0) >= setup.min_ranks
    return bool(fits and free.get("GPU", 0.0) >= setup.min_ranks * setup.gpus_per_rank)


def _code_digest() -> str:
    """Digest of the sources of workers and contract, versions of `_PACKAGES`, and installed methods."""
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
    """Source of a method's module, which may be edited in place; empty if it cannot be found."""
    try:
        spec = find_spec(module)
    except ImportError:
        return b""
    path = Path(spec.origin) if spec and spec.origin else None
    return path.read_bytes() if path and path.is_file() else b""
