"""Convergence: once all faults are removed, every job ends."""

from collections.abc import Sequence

from cmcl.contract.api.jobs import JobState
from service.launchers.port import LaunchState
from tests.faults.invariants import InvariantChecker
from tests.faults.replica import Replica
from tests.faults.scenarios import is_quiet
from tests.faults.world import World

_MOST_ROUNDS = 400
# While nothing changes, time advances faster: the next change is a deadline.
_STILL_ROUNDS = 4


def converge(world: World, replicas: Sequence[Replica], checker: InvariantChecker) -> None:
    """Raises AssertionError that names what is stuck."""
    world.cluster.heal()
    for replica in replicas:
        replica.restart()
    before, still = None, 0
    for _ in range(_MOST_ROUNDS):
        for replica in replicas:
            replica.round()
        serve(world)
        _approve(world)
        now = [(job.id, job.revision) for job in world.jobs()]
        still = still + 1 if now == before else 0
        before = now
        world.clock.advance(15 if still > _STILL_ROUNDS else 1)
        if is_quiet(world):
            break
    for replica in replicas:
        replica.round()
    checker.check_at_the_end()


def serve(world: World) -> None:
    """Carry out the requests to prepare, and run what is on the cluster."""
    world.prepare()
    for attempt in list(world.cluster.alive):
        state = world.cluster.word(attempt)
        if state == LaunchState.RUNNING:
            world.complete(attempt, LaunchState.SUCCEEDED)
        elif state == LaunchState.PENDING:
            world.start(attempt)


def _approve(world: World) -> None:
    """Approve what is held, at any moment."""
    for job in world.jobs():
        if job.state == JobState.HELD:
            world.approve(job.id)
