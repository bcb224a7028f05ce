"""A pool of ranks that outlives single attempts, so that an attempt does not wait for imports: an actor on Ray.

It has the queue, and keeps one Ray Train run going. It dies with its driver, and its ranks die with it.
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

from workers.train.queue import Assignment, Attempt, AttemptQueue, AttemptStatus, Retire
from workers.train.server import PoolLost
from workers.train.settings import PoolSetup, Ranks

# The longest that a call of a rank waits for a change; the rank then calls again.
_WAIT_SECONDS = 10.0
# How long the driver waits for a reply, which takes milliseconds. Only while the actor starts, it takes seconds.
_CALL_SECONDS = 0.05

T = TypeVar("T")


class PoolActor(AttemptQueue):
    """A Ray actor: the queue, and calls that wait for it to change.

    It is an asyncio actor, so all methods run in its one event loop, also those of `AttemptQueue`.
    """

    def __init__(self, store_uri: str, ranks: Ranks) -> None:
        self._changed = asyncio.Event()
        # Why there are no longer any ranks.
        self._lost_because = ""
        super().__init__(on_change=self._notify)
        own = ray.get_runtime_context().current_actor
        threading.Thread(target=self._keep_group, args=[store_uri, ranks, own], daemon=True).start()

    async def exchange(self, wanted: Mapping[Attempt, str]) -> dict[Attempt, AttemptStatus]:
        """Called by the driver: see `Pool`. Raises RuntimeError if Ray Train has given up."""
        if self._lost_because:
            raise RuntimeError(self._lost_because)
        self.want(wanted)
        return {attempt: self.status(attempt) for attempt in wanted}

    async def wait_for_group(self) -> bool:
        """Called by the driver: whether there are ranks; returns as soon as there are."""
        return bool(await self._until(lambda: self.has_group))

    def group_failed(self, error: str) -> None:
        """Called by Ray Train's controller, which replaces the group."""
        print(f"the ranks failed: {error}", flush=True)
        super().group_failed(error)

    async def wait_for_next(self, after: int) -> Assignment | Retire | None:
        """Called by a rank: see `AttemptQueue.next`. Returns None after a while."""
        return await self._until(lambda: self.next(after))

    async def wait_until_abandoned(self) -> bool:
        """Called by rank 0: whether the attempt in training is no longer wanted; returns as soon as it is not."""
        return bool(await self._until(self.is_abandoned))

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

    def _keep_group(self, store_uri: str, ranks: Ranks, own: Any) -> None:
        """Run one group after another."""
        try:
            # Ray Train takes seconds to import. The driver, which imports this module, does not need it.
            from workers.train.ranks import run_pool

            while True:
                run_pool(store_uri, ranks, own)
        except BaseException:  # noqa: BLE001
            # Reported by the next call of the driver, which ends this process.
            self._lost_because = traceback.format_exc()


class RayPool:
    """A `Pool` on the cluster of this process."""

    def __init__(self, store_uri: str, setup: PoolSetup) -> None:
        """Return at once; the ranks take seconds to start, and longer without room for them."""
        self.setup = setup
        node = str(ray.get_runtime_context().get_node_id())
        # On the driver's node: no other one has to stay for it.
        near = NodeAffinitySchedulingStrategy(node, soft=False)
        remote = ray.remote(PoolActor).options(num_cpus=0, scheduling_strategy=near)
        self._actor: Any = remote.remote(store_uri, setup.ranks)
        self._call: Any = None
        self._start_call: Any = None

    def has_started(self) -> bool:
        """See `Pool`."""
        if self._start_call is None:
            self._start_call = self._actor.wait_for_group.remote()
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
    fewest, gpus_each = setup.ranks.fewest, setup.ranks.gpus_each
    return free.get("CPU", 0.0) >= fewest and free.get("GPU", 0.0) >= fewest * gpus_each
