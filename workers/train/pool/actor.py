"""The Ray actor of the pool: it runs the server, and keeps one Ray Train run going.

Jobs connect to its socket, or call it from other nodes; ranks call its methods. When it dies its ranks
die with it, and jobs that were waiting for it train with ranks of their own.
"""

import asyncio
import os
import threading
from os.path import samestat
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workers.train.pool.protocol import (
    ACTOR_NAME,
    NAMESPACE,
    POLL_SECONDS,
    PoolSetup,
    Request,
    socket_path,
    status_from_line,
    status_to_line,
)
from workers.train.pool.queue import Assignment, AttemptStatus, Retire
from workers.train.pool.server import PoolServer


class PoolActor:
    """A Ray actor. Everything that uses the queue runs in its one event loop."""

    def __init__(self, setup: PoolSetup, store_uri: str, idle_seconds: float) -> None:
        """`idle_seconds`: it ends after this long without an attempt, until a job sets another."""
        self._setup, self._store_uri = setup, store_uri
        self._pool = PoolServer(setup, idle_seconds, end=lambda: os._exit(0))
        self._queue = self._pool.queue
        self._server: asyncio.Server | None = None
        self._socket: os.stat_result | None = None
        self._idling: asyncio.Future[None] | None = None
        threading.Thread(target=self._keep_group, daemon=True, name="group").start()

    async def open(self) -> None:
        """Listen, if it does not yet. Called by every job that did not find the socket."""
        path = socket_path(ray.get_runtime_context().gcs_address)
        if self._is_listening_at(path):
            return
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._pool.serve, path)
        self._socket = path.stat()
        self._idling = self._idling or asyncio.ensure_future(self._pool.close_when_idle())

    async def poll(self, request_line: bytes, known_line: bytes) -> bytes:
        """Called by jobs on other nodes, again and again: see `PoolServer.poll`."""
        return await self._pool.poll(request_line, known_line)

    async def disconnect(self, request_line: bytes) -> None:
        """Called by a job on another node when it stops polling."""
        self._pool.disconnect(request_line)

    async def group_started(self) -> None:
        """Called by rank 0 of a new group."""
        self._queue.group_started()
        self._pool.notify()

    async def group_failed(self, error: str) -> None:
        """Called by Ray Train's controller, which replaces the group."""
        print(f"the ranks failed: {error}", flush=True)
        self._queue.group_failed(error)
        self._pool.notify()

    async def next(self, after: int) -> Assignment | Retire | None:
        """The next assignment for a rank that has completed number `after`; None: call again."""
        return await self._pool.until(lambda: self._queue.next(after))

    async def attempt_done(self, number: int) -> None:
        """Called by rank 0."""
        self._queue.attempt_done(number)
        self._pool.notify()

    async def attempt_failed(self, number: int, message: str) -> None:
        """Called by a rank whose error a retry would meet again."""
        self._queue.attempt_failed(number, message)
        self._pool.notify()

    async def attempt_error(self, number: int, message: str) -> None:
        """Called by a rank with any other error, which then ends its group."""
        self._queue.attempt_error(number, message)

    async def is_abandoned(self) -> bool:
        """Whether the attempt in training is no longer wanted; returns as soon as it is not."""
        return bool(await self._pool.until(self._queue.is_abandoned))

    def _is_listening_at(self, path: Path) -> bool:
        """False if the socket's file was deleted or replaced."""
        return self._socket is not None and path.exists() and samestat(self._socket, path.stat())

    def _keep_group(self) -> None:
        """Run one group after another. If that raises, this process ends."""
        try:
            # Torch and Ray Train take seconds to import, and jobs that open the actor need neither.
            from workers.train.pool.ranks import run_pool_group

            while True:
                run_pool_group(self._store_uri, self._setup)
        finally:
            os._exit(1)


class RayConnection:
    """Connection to a pool on another node: calls that return on a change, or after a while."""

    def __init__(self, actor: Any, request: Request) -> None:
        self._actor, self._request_line = actor, request.to_line()
        self._known_line = status_to_line(AttemptStatus("waiting"))
        self._call: Any = None

    def receive(self) -> AttemptStatus:
        """See `Connection`."""
        if self._call is None:
            self._call = self._actor.poll.remote(self._request_line, self._known_line)
        try:
            self._known_line = ray.get(self._call, timeout=POLL_SECONDS)
        except GetTimeoutError as error:
            raise TimeoutError("no change yet") from error
        except RayError as error:
            raise ConnectionError(str(error)) from error
        self._call = None
        return status_from_line(self._known_line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._actor.disconnect.remote(self._request_line)


def open_actor(store_uri: str, setup: PoolSetup, idle_seconds: float) -> tuple[Any, Path]:
    """The cluster's actor, created if there is none, and the path of its socket on its own node.

    Its ranks may take long to start. Raises ConnectionError if the actor died.
    """
    _join_cluster()
    node = str(ray.get_runtime_context().get_node_id())
    actor: Any = (
        ray.remote(PoolActor)
        .options(
            name=ACTOR_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            # On the node of the drivers of jobs, which can then use its socket.
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote(setup, store_uri, idle_seconds)
    )
    try:
        ray.get(actor.open.remote())
    except RayError as error:
        raise ConnectionError(str(error)) from error
    return actor, socket_path(ray.get_runtime_context().gcs_address)


def free_resources() -> dict[str, float]:
    """Resources of the cluster that are not in use, by name."""
    _join_cluster()
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return free


def _join_cluster() -> None:
    if not ray.is_initialized():
        ray.init()
