"""The channel between replicas by means of Ray: one small actor, found by its name.

Plain calls of an actor, because handles of Serve fail outside of replicas where
RAY_SERVE_THROUGHPUT_OPTIMIZED is set.
"""

from typing import Any

import ray
from ray.exceptions import RayError

from workers.serve.announcements import WAIT_SECONDS, Broadcaster, ChannelLost

# Part of the actor's name: another version of the protocol has another actor.
_PROTOCOL = 1
_NAME, _NAMESPACE = f"cmcl-announcements-{_PROTOCOL}", "cmcl"
# Each replica has one call under way: as many as there may be, and those that replace them.
_CALLS_AT_ONCE = 2500
_ANSWER_SECONDS = WAIT_SECONDS + 10


class Announcements:
    """The actor. A restart loses its count, which is compared and nothing else."""

    def __init__(self) -> None:
        self._broadcaster = Broadcaster()

    async def announce(self, model: str) -> None:
        """Announce a change of this model; listeners poll everything."""
        self._broadcaster.announce()

    async def wait(self, seen: int) -> int:
        """See `Broadcaster.wait`."""
        return await self._broadcaster.wait(seen)


class ActorChannel:
    """See the port, `Channel`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def announce(self, model: str) -> None:
        """See the port: the answer is not waited for."""
        self._actor.announce.remote(model)

    def wait(self, seen: int) -> int:
        """See the port."""
        try:
            # Not ray.get: inside of a replica it warns that it would hold up the event loop.
            count: int = self._actor.wait.remote(seen).future().result(_ANSWER_SECONDS)
        except (RayError, TimeoutError) as error:
            raise ChannelLost(str(error)) from error
        return count


def open_channel() -> ActorChannel:
    """The cluster's channel; its actor is made if there is none. Raises ChannelLost."""
    try:
        actor = ray.remote(Announcements).options(
            name=_NAME,
            namespace=_NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=_CALLS_AT_ONCE,
        )
        return ActorChannel(actor.remote())
    except (RayError, ConnectionError) as error:
        raise ChannelLost(str(error)) from error


def close_channel() -> None:
    """Kill the actor, which would outlive the application."""
    try:
        actor = ray.get_actor(_NAME, _NAMESPACE)
    except ValueError:
        return  # There is none.
    ray.kill(actor)
