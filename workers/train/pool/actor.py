"""A pool on Ray: an actor with the queue, which keeps one Ray Train run going.

The driver and the ranks call its methods. It dies with its driver, and its ranks die with it.
"""

import asyncio
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workers.train.pool.queue import Assignment, Attempt, AttemptStatus, JobQueue, Retire
from workers.train.pool.server import PoolLost
from workers.train.pool.setup import PoolSetup

# The longest that a call of a rank waits for a change; the rank then calls again.
_WAIT_SECONDS = 10.0
# How long the driver waits for a reply, which takes milliseconds. Only while the actor starts, it takes seconds.
_CALL_SECONDS = 0.05

T = TypeVar("T")


class PoolActor:
    """A Ray actor. Everything that uses the queue runs in its one event loop."""

    def __init__(self, store_uri: str, setup: PoolSetup) -> None:
        self._queue = JobQueue()
        self._changed = asyncio.Event()
        # Why there are no longer any ranks.
        self._error = ""
        own = ray.get_runtime_context().current_actor
        threading.Thread(target=self._keep_group, args=[store_uri, setup, own], daemon=True).start()

    async def exchange(self, wanted: Mapping[Attempt, str]) -> dict[Attempt, AttemptStatus]:
        """Called by the driver: see `Pool`. Raises RuntimeError if Ray Train has given up."""
        if self._error:
            raise RuntimeError(self._error)
        if self._queue.want(wanted):
            self._notify()
        return {attempt: self._queue.status(attempt) for attempt in wanted}

    async def has_ranks(self) -> bool:
        """Called by the driver: whether there are ranks; returns as soon as there are."""
        return bool(await self._until(lambda: self._queue.has_group))

    async def group_started(self) -> None:
        """Called by rank 0 of a new group."""
        self._queue.group_started()
        self._notify()

    async def group_failed(self, error: str) -> None:
        """Called by Ray Train's controller, which replaces the group."""
        print(f"the ranks failed: {error}", flush=True)
        self._queue.group_failed(error)
        self._notify()

    async def next(self, after: int) -> Assignment | Retire | None:
        """The next assignment for a rank that has completed number `after`; None: call again."""
        return await self._until(lambda: self._queue.next(after))

    async def attempt_done(self, number: int) -> None:
        """Called by rank 0."""
        self._queue.attempt_done(number)
        self._notify()

    async def attempt_failed(self, number: int, message: str) -> None:
        """Called by a rank whose error a retry would meet again."""
        self._queue.attempt_failed(number, message)
        self._notify()

    async def attempt_error(self, number: int, message: str) -> None:
        """Called by a rank with any other error, which then ends its group."""
        self._queue.attempt_error(number, message)

    async def is_abandoned(self) -> bool:
        """Whether the attempt in training is no longer wanted; returns as soon as it is not."""
        return bool(await self._until(self._queue.is_abandoned))

    async def _until(self, look: Callable[[], T | None]) -> T | None:
        """What `look` returns as soon as that is true; None after a while."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while not (found := look()):
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return None
        return found

    def _notify(self) -> None:
        """Wake all calls that wait for a change of the queue."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _keep_group(self, store_uri: str, setup: PoolSetup, own: Any) -> None:
        """Run one group after another."""
        try:
            # Ray Train takes seconds to import. The driver, which imports this module, does not need it.
            from workers.train.pool.group import run_pool_group

            while True:
                run_pool_group(store_uri, setup, own)
        except BaseException:  # noqa: BLE001
            # Reported by the next call of the driver, which ends this process.
            self._error = traceback.format_exc()


class RayPool:
    """A `Pool` on the cluster of this process."""

    def __init__(self, store_uri: str, setup: PoolSetup) -> None:
        """Return at once; the ranks take seconds to start, and longer without room for them."""
        self.setup = setup
        node = str(ray.get_runtime_context().get_node_id())
        # On the driver's node: no other one has to stay for it.
        near = NodeAffinitySchedulingStrategy(node, soft=False)
        remote = ray.remote(PoolActor).options(num_cpus=0, scheduling_strategy=near)
        self._actor: Any = remote.remote(store_uri, setup)
        self._call: Any = None
        self._start_call: Any = None

    def has_started(self) -> bool:
        """See `Pool`."""
        if self._start_call is None:
            self._start_call = self._actor.has_ranks.remote()
        done: list[Any]
        done, _ = ray.wait([self._start_call], timeout=0)
        if not done:
            return False
        self._start_call = None
        try:
            has_started: bool = ray.get(done[0])
        except RayError:
            return False  # The next exchange says why.
        return has_started

    def exchange(self, wanted: Mapping[Attempt, str]) -> Mapping[Attempt, AttemptStatus]:
        """See `Pool`."""
        if self._call is None:
            self._call = self._actor.exchange.remote(wanted)
        try:
            statuses: dict[Attempt, AttemptStatus] = ray.get(self._call, timeout=_CALL_SECONDS)
        except GetTimeoutError:
            return {}
        except RayError as error:
            raise PoolLost(str(error)) from error
        self._call = None
        return statuses

    def end(self) -> None:
        """See `Pool`."""
        ray.kill(self._actor)


def has_room(setup: PoolSetup) -> bool:
    """Whether the cluster of this process has resources for a group that are not in use."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    fits = free.get("CPU", 0.0) >= setup.min_ranks
    return fits and free.get("GPU", 0.0) >= setup.min_ranks * setup.gpus_per_rank
