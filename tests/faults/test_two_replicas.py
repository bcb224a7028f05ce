"""Two replicas, a cluster, a store and users in any order: Hypothesis searches for a failing schedule.

A step is one call of one replica to database, store or launcher, or one act of a user or the cluster.
After each step all invariants are checked; in the end all faults are removed, and every job must
end. CMCL_FAULT_EXAMPLES=1000 runs more schedules, other ones each time.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cmcl.contract.gate import Gate
from service.core.states import CANCELLABLE, JobState
from service.launchers.port import LaunchState
from tests.faults.convergence import converge, serve
from tests.faults.invariants import InvariantChecker
from tests.faults.postgres import Postgres
from tests.faults.replica import Order, Replica
from tests.faults.world import BAD, GOOD_SHARDS, SKEW_SECONDS, Template, World

_EXAMPLES = int(os.environ.get("CMCL_FAULT_EXAMPLES", "40"))
_STEPS = 60
PICK = st.integers(0, 7)
# Mostly the one that has the lease: the other one has little to do.
WHO = st.sampled_from(["leader", "leader", "a", "b"])
PLAIN = Gate()
GATE = st.sampled_from(
    [
        PLAIN,
        PLAIN,
        PLAIN,
        Gate(manual_approval=True),
        Gate(max_drift=0.5),
        Gate(min_gain=0.5),
    ]
)
TROUBLES = ("killed", "half written", "gave up", "vanished", "stubborn", "false word")
WORDS = {
    "approve": {JobState.HELD},
    "retry": {JobState.FAILED, JobState.REJECTED},
    "reject": {JobState.HELD},
    "cancel": CANCELLABLE,
}
SHARD = st.sampled_from([*(f"good-{number}" for number in range(GOOD_SHARDS)), BAD])


class TwoReplicas(RuleBasedStateMachine):
    """A schedule. `new_world` is set by the test that runs it."""

    new_world: ClassVar[Callable[[], World]]
    tally: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.world = type(self).new_world()
        self.checker = InvariantChecker(self.world)
        self.replicas: dict[str, Replica] = {}

    @initialize(
        skew=st.sampled_from([0, SKEW_SECONDS, -SKEW_SECONDS]),
        gate=GATE,
        shards=st.lists(SHARD, max_size=3),
        rounds=st.integers(0, 12),
    )
    def begin(self, skew: float, gate: Gate, shards: list[str], rounds: int) -> None:
        """Start after some rounds without faults."""
        self.replicas = {
            "a": Replica(self.world, "a", 0, self.tally),
            "b": Replica(self.world, "b", skew, self.tally),
        }
        self.world.post("good-0")
        for _ in range(rounds):
            self.replicas["a"].round()
            serve(self.world)
            self.world.clock.advance(1)
        self.world.set_gate(gate)
        for shard in shards:
            self.world.post(shard)

    # The replicas.

    @rule(who=WHO, contacts=st.integers(1, 40))
    def go_on(self, who: str, contacts: int) -> None:
        """Advance a replica; it may pause in the middle of a step and continue much later."""
        replica = self._replica(who)
        for _ in range(contacts):
            replica.go()

    @rule(who=WHO, rounds=st.integers(3, 10))
    def go_on_for_rounds(self, who: str, rounds: int) -> None:
        replica = self._replica(who)
        for _ in range(rounds):
            replica.round()
            self.world.clock.advance(1)

    @rule(who=WHO, number=st.integers(0, 6))
    def stall(self, who: str, number: int) -> None:
        """Pause it before a change: the state that it has read may change in between."""
        self._replica(who).go_to_effect(number)

    @rule(who=WHO, number=st.integers(0, 6), order=st.sampled_from([Order.FAIL, Order.LOSE]))
    def hear_an_error(self, who: str, number: int, order: Order) -> None:
        replica = self._replica(who)
        replica.go_to_effect(number)
        replica.go(order)

    @rule(who=WHO, number=st.integers(0, 6), is_done=st.booleans())
    def kill(self, who: str, number: int, is_done: bool) -> None:
        """Kill it before a change, or directly after it."""
        replica = self._replica(who)
        replica.go_to_effect(number)
        if is_done:
            replica.go()
        replica.kill()

    @precondition(lambda self: any(not replica.is_alive for replica in self.replicas.values()))
    @rule()
    def restart(self) -> None:
        for replica in self.replicas.values():
            replica.restart()

    @rule(seconds=st.sampled_from([1, 3, 5, 8, 25, 45, 400]))
    def let_time_pass(self, seconds: float) -> None:
        """Advance the time; outages are short."""
        self.world.clock.advance(seconds)
        self.world.cluster.is_down = self.world.cluster.refuses = False

    # The users.

    @rule(shard=SHARD, dry_run=st.sampled_from([False, False, False, True]))
    def post(self, shard: str, dry_run: bool) -> None:
        """Also one that was posted before, and rows that cannot be used."""
        self.world.post(shard, dry_run=dry_run)

    @precondition(lambda self: self.checker.states)
    @rule(what=PICK, pick=PICK)
    def say(self, what: int, pick: int) -> None:
        """Send a user's request about a job, at any moment."""
        of_word = {
            word: [job for job, state in self.checker.states.items() if state in states]
            for word, states in WORDS.items()
        }
        # Some job can nearly always be cancelled, which would leave too few to run.
        words = [word for word, jobs in of_word.items() if jobs and (word != "cancel" or what == 7)]
        if words:
            word = words[what % len(words)]
            jobs = of_word[word]
            self.tally[word] += getattr(self.world, word)(jobs[pick % len(jobs)])

    @precondition(lambda self: self.checker.head)
    @rule(act=st.sampled_from(["promote", "roll back", "branch", "gate"]), data=st.data())
    def decide(self, act: str, data: st.DataObject) -> None:
        versions = st.integers(1, self.checker.head)
        match act:
            case "promote":
                done = self.world.promote(data.draw(versions))
            case "branch":
                done = self.world.branch("branched", data.draw(versions))
            case "gate":
                done = self.world.set_gate(data.draw(GATE))
            case _:
                done = self.world.roll_back()
        self.tally[act] += done

    # The cluster.

    @precondition(lambda self: self.world.cluster.alive)
    @rule(pick=PICK, updates=st.integers(0, 9))
    def get_on(self, pick: int, updates: int) -> None:
        attempt = self._attempt(pick)
        if self.world.cluster.word(attempt) == LaunchState.PENDING:
            self.world.start(attempt)
        else:
            self.world.progress(attempt, updates)

    @rule(is_away=st.booleans())
    def prepare_datasets(self, is_away: bool) -> None:
        """The driver ends, or another one carries out the requests."""
        if is_away:
            self.world.store.is_away = True
        else:
            self.world.prepare()

    @precondition(lambda self: self.world.cluster.alive)
    @rule()
    def all_complete(self) -> None:
        for attempt in list(self.world.cluster.alive):
            self.world.complete(attempt, LaunchState.SUCCEEDED)

    @precondition(lambda self: self.world.cluster.alive)
    @rule(
        pick=PICK,
        says=st.sampled_from([LaunchState.SUCCEEDED, LaunchState.FAILED, LaunchState.RUNNING]),
        drift=st.sampled_from([0.1, 0.9]),
    )
    def complete(self, pick: int, says: LaunchState, drift: float) -> None:
        """Complete an attempt, possibly one that was counted as lost."""
        attempt = self._attempt(pick)
        is_zombie = self.world.cluster.word(attempt) not in (
            LaunchState.PENDING,
            LaunchState.RUNNING,
        )
        self.tally["zombie completes" if is_zombie else f"complete, said to be {says}"] += 1
        self.world.complete(attempt, says, drift)

    @precondition(lambda self: self.world.cluster.alive)
    @rule(pick=PICK, how=st.sampled_from(TROUBLES))
    def trouble(self, pick: int, how: str) -> None:
        attempt, cluster = self._attempt(pick), self.world.cluster
        self.tally[f"attempt {how}"] += 1
        match how:
            case "killed":
                cluster.die(attempt, LaunchState.FAILED, "killed")
            case "half written":
                self.world.leave_half(attempt)
            case "gave up":
                self.world.give_up(attempt)
            case "vanished":
                cluster.vanish(attempt)
            case "stubborn":
                cluster.stubborn.add(attempt)
            case _:
                cluster.claim(attempt, LaunchState.FAILED, "the head restarted")

    @precondition(lambda self: self.world.cluster.commands)
    @rule(what=st.sampled_from(["restart", "down", "refuses", "up"]))
    def unrest(self, what: str) -> None:
        self.tally[f"head: {what}"] += 1
        cluster = self.world.cluster
        if what == "restart":
            cluster.restart_head()
        cluster.is_down = what == "down"
        cluster.refuses = what == "refuses"

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.checker.check()

    def teardown(self) -> None:
        try:
            if self.replicas:
                converge(self.world, list(self.replicas.values()), self.checker)
        finally:
            for replica in self.replicas.values():
                replica.end()
            self.world.close()
        self._count()

    def _count(self) -> None:
        self.tally["stories"] += 1
        self.tally["looks"] += self.checker.looks
        self.tally["live.json went back"] += self.checker.steps_back
        self.tally.update(self.checker.ends)

    def _replica(self, who: str) -> Replica:
        if who != "leader":
            return self.replicas[who]
        return next((one for one in self.replicas.values() if one.leads), self.replicas["a"])

    def _attempt(self, pick: int) -> str:
        attempts = self.world.cluster.alive
        return attempts[pick % len(attempts)]


@pytest.mark.timeout(3600)
def test_no_story_of_two_replicas_breaks_anything(
    template: Template, stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run_schedules(partial(World, template, stage), _EXAMPLES, capsys)


@pytest.mark.timeout(3600)
def test_no_schedule_on_postgresql_breaks_anything(
    postgres: Postgres, stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer schedules: only the waiting between transactions differs."""

    def new_world() -> World:
        postgres.restart()
        return World(postgres.template, stage, postgres.url)

    _run_schedules(new_world, max(5, _EXAMPLES // 8), capsys)


def _run_schedules(
    new_world: Callable[[], World], examples: int, capsys: pytest.CaptureFixture[str]
) -> None:
    class RandomSchedules(TwoReplicas):
        pass

    RandomSchedules.new_world, RandomSchedules.tally = staticmethod(new_world), Counter()
    began, cpu = time.monotonic(), time.process_time()
    is_short = "CMCL_FAULT_EXAMPLES" not in os.environ
    run_state_machine_as_test(
        RandomSchedules,
        settings=settings(
            max_examples=examples,
            stateful_step_count=_STEPS,
            derandomize=is_short,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    with capsys.disabled():
        print(f"\n  {time.monotonic() - began:.1f} s, {time.process_time() - cpu:.1f} s of a CPU")
        for what, count in sorted(RandomSchedules.tally.items()):
            print(f"    {what}: {count}")
    assert RandomSchedules.tally["published"] > examples / 2, (
        "the stories are too sad to tell anything"
    )
