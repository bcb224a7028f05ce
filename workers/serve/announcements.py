"""Announcements: replicas poll the store at once when something has changed there.

    control plane ── POST /internal/announcements ──> any replica ──> channel ──> every replica polls

Only for speed: replicas poll the store at intervals as well.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from workers.serve.threads import SYSTEM, Threads

logger = logging.getLogger(__name__)

# Part of the actor's name: another version of the protocol has another actor.
_PROTOCOL = 2
_NAME, _NAMESPACE = f"cmcl-announcements-{_PROTOCOL}", "cmcl"
# Each replica has one call under way: as many as there may be, and those that replace them.
_CALLS_AT_ONCE = 2500

# Bounds how many polls of the store requests to one replica can cause in a second.
_SECONDS = 0.02
# Calls end, so that listeners that are gone are noticed.
_WAIT_SECONDS = 20.0
_ANSWER_SECONDS = _WAIT_SECONDS + 10
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
_NOTHING = -1


class ChannelLost(Exception):
    """The channel is broken; opening it again may help."""


class Broadcaster:
    """Counts announcements, and wakes all who wait for the count to change. An actor's class, used from one event loop."""

    def __init__(self, wait_seconds: float = _WAIT_SECONDS) -> None:
        self._wait_seconds = wait_seconds
        self._count = 0
        self._news = asyncio.Event()

    async def announce(self) -> None:
        self._count += 1
        self._news.set()
        self._news = asyncio.Event()

    async def wait(self, seen: int) -> int:
        """Return the count, once it is not `seen`, or after `wait_seconds`."""
        if self._count == seen:
            try:
                await asyncio.wait_for(self._news.wait(), self._wait_seconds)
            except TimeoutError:
                pass  # Nothing was announced, which is an answer.
        return self._count


class Channel:
    """Reaches all replicas through one small actor. An announcement without listeners is lost.

    Plain calls of an actor, because handles of Serve fail outside of replicas where
    RAY_SERVE_THROUGHPUT_OPTIMIZED is set.
    """

    def __init__(self) -> None:
        """Find the cluster's actor by its name, or create it. Raises ChannelLost."""
        try:
            actor = ray.remote(Broadcaster).options(
                name=_NAME,
                namespace=_NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                max_restarts=-1,
                max_concurrency=_CALLS_AT_ONCE,
            )
            self._actor: Any = actor.remote()
        except (RayError, ConnectionError) as error:
            raise ChannelLost(str(error)) from error

    def announce(self) -> None:
        """Announce a change. Does not wait, and never fails."""
        self._actor.announce.remote()

    def wait(self, seen: int) -> int:
        """Return how many announcements there were, once that is not `seen`, or after some seconds. Raises ChannelLost."""
        try:
            # Not ray.get: inside of a replica it warns that it would hold up the event loop.
            count: int = self._actor.wait.remote(seen).future().result(_ANSWER_SECONDS)
        except (RayError, TimeoutError) as error:
            raise ChannelLost(str(error)) from error
        return count


def close_channel() -> None:
    """Kill the actor, which would outlive the application."""
    try:
        actor = ray.get_actor(_NAME, _NAMESPACE)
    except ValueError:
        return  # There is none.
    ray.kill(actor)


class AnnouncementListener:
    """Waits for announcements in a thread and wakes the followers.

    A channel that is lost is opened again; until then the replica polls the store alone.
    """

    def __init__(
        self,
        wake: Callable[[], None],
        connected: Callable[[bool], None] = lambda _: None,
        open_channel: Callable[[], Channel] = Channel,
        first_pause_seconds: float = _FIRST_PAUSE_SECONDS,
        threads: Threads = SYSTEM,
    ) -> None:
        """`wake` must not block. `connected` is called with whether announcements arrive."""
        self._open_channel = open_channel
        self._wake = wake
        self._connected = connected
        self._first_pause_seconds = first_pause_seconds
        self._pause_seconds = first_pause_seconds
        self._channel: Channel | None = None
        self._is_pausing = False
        self._was_called = False
        self._sleep = threads.sleep
        self._thread = threads.thread("listener", self._run)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def announce(self) -> None:
        """Make every replica poll the store: now, and once more for all calls within the next 20 ms.

        Does not wait, and never fails. Used from one event loop.
        """
        if self._is_pausing:
            self._was_called = True
            return
        self._is_pausing = True
        asyncio.get_running_loop().call_later(_SECONDS, self._resume)
        # Without a channel the other replicas notice when they poll; this one need not wait for that.
        if self._channel is None:
            self._wake()
        else:
            self._channel.announce()

    def _resume(self) -> None:
        assert self._is_pausing
        self._is_pausing = False
        if self._was_called:
            self._was_called = False
            self.announce()

    def _run(self) -> None:
        while True:
            try:
                self._listen(self._open_channel())
            except ChannelLost as error:
                self._log_outage("no announcements, polling continues: %s", error)
            except Exception as error:
                # A bug, or a new kind of error of Ray's: without this thread no announcement would arrive again.
                logger.debug("the channel failed", exc_info=error)
                self._log_outage("no announcements because of an error: %r", error)
            self._sleep(self._pause_seconds)
            self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)

    def _listen(self, channel: Channel) -> None:
        """Wait until the channel is lost. The first answer wakes as well: something may have been missed."""
        seen = _NOTHING
        while True:
            count = channel.wait(seen)
            assert count >= 0
            if self._channel is None:
                self._channel = channel
                self._pause_seconds = self._first_pause_seconds
                self._connected(True)
            if count != seen:
                seen = count
                self._wake()

    def _log_outage(self, words: str, error: Exception) -> None:
        """Log once for each outage."""
        is_new = self._channel is not None or self._pause_seconds == self._first_pause_seconds
        if is_new:
            logger.warning(words, error)
        self._channel = None
        self._connected(False)
