"""Two replicas, a cluster, a store and some users, in any order: Hypothesis looks for a story that breaks.

A step is one contact of one replica with database, store or launcher, or one act of somebody else.
After each, everything is looked at; in the end the world is healed, and everything must come to an
end. CMCL_FAULT_EXAMPLES=1000 tells more stories, other ones each time.
"""

import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import ClassVar, TypeVar

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

from service.launchers.port import LaunchState
from service.states import JobState
from tests.faults.ending import come_to_an_end
from tests.faults.invariants import Witness
from tests.faults.replica import Order, Replica
from tests.faults.world import BAD, GOOD_SHARDS, Template, World, fresh_folder
from workers.contract.policy import GatePolicy

T = TypeVar("T")

_EXAMPLES = int(os.environ.get("CMCL_FAULT_EXAMPLES", "40"))
_STEPS = 60
PICK = st.integers(0, 7)
WHO = st.sampled_from(["a", "b"])
POLICIES = (
    GatePolicy(),
    GatePolicy(manual_approval=True),
    GatePolicy(max_drift=0.5),
    GatePolicy(min_gain=0.5),
)


class TwoReplicas(RuleBasedStateMachine):
    """The story so far. `template` and `database_url` are set by the test that runs it."""

    template: ClassVar[Template]
    database_url: ClassVar[str | None] = None
    tally: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self._open = ExitStack()
        folder = self._open.enter_context(fresh_folder())
        self.world = World(self.template, folder, self.database_url)
        self._open.callback(self.world.close)
        self.witness = Witness(self.world)
        self.replicas: dict[str, Replica] = {}

    @initialize(skew=st.sampled_from([0, 3, -3]), policy=st.sampled_from(POLICIES))
    def begin(self, skew: float, policy: GatePolicy) -> None:
        self.world.set_policy(policy)
        self.replicas = {
            "a": Replica(self.world, "a", 0, self.tally),
            "b": Replica(self.world, "b", skew, self.tally),
        }
        self.world.post("good-0")

    # The replicas.

    @rule(who=WHO, contacts=st.integers(1, 30))
    def go_on(self, who: str, contacts: int) -> None:
        for _ in range(contacts):
            self.replicas[who].go()

    @rule(who=WHO, rounds=st.integers(1, 6))
    def go_on_for_rounds(self, who: str, rounds: int) -> None:
        for _ in range(rounds):
            self.replicas[who].round()

    @rule(who=WHO, order=st.sampled_from([Order.FAIL, Order.LOSE]))
    def hear_an_error(self, who: str, order: Order) -> None:
        self.replicas[who].go(order)

    @rule(who=WHO)
    def kill(self, who: str) -> None:
        self.replicas[who].kill()

    @rule(who=WHO)
    def restart(self, who: str) -> None:
        self.replicas[who].restart()

    @rule(seconds=st.sampled_from([1, 2, 5, 25, 45, 400]))
    def let_time_pass(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    # The users.

    @rule(number=st.integers(0, GOOD_SHARDS - 1))
    def post(self, number: int) -> None:
        self.world.post(f"good-{number}")

    @rule()
    def post_bad_rows(self) -> None:
        self.world.post(BAD)

    @rule(pick=PICK, word=st.sampled_from(["cancel", "retry", "approve", "reject"]))
    def say(self, pick: int, word: str) -> None:
        job = self._picked(self.world.jobs(), pick)
        if job is not None and getattr(self.world, word)(job.id):
            self.tally[word] += 1

    @rule(version=st.integers(1, 3))
    def promote(self, version: int) -> None:
        self.tally["promote"] += self.world.promote(version)

    @rule()
    def roll_back(self) -> None:
        self.tally["roll back"] += self.world.roll_back()

    @rule(policy=st.sampled_from(POLICIES))
    def set_policy(self, policy: GatePolicy) -> None:
        self.world.set_policy(policy)

    @rule(version=st.integers(1, 3))
    def branch(self, version: int) -> None:
        self.tally["branch"] += self.world.branch("branched", version)

    # The cluster.

    @precondition(lambda self: self.world.cluster.alive)
    @rule(pick=PICK)
    def start(self, pick: int) -> None:
        self.world.start(self._attempt(pick))

    @precondition(lambda self: self.world.cluster.alive)
    @rule(pick=PICK, updates=st.integers(0, 9))
    def progress(self, pick: int, updates: int) -> None:
        self.world.progress(self._attempt(pick), updates)

    @precondition(lambda self: self.world.cluster.alive)
    @rule(
        pick=PICK,
        says=st.sampled_from([LaunchState.SUCCEEDED, LaunchState.FAILED, LaunchState.RUNNING]),
        drift=st.sampled_from([0.1, 0.9]),
    )
    def complete(self, pick: int, says: LaunchState, drift: float) -> None:
        """Also of one that was taken for lost: a zombie's success."""
        self.tally[f"complete, said to be {says}"] += 1
        self.world.complete(self._attempt(pick), says, drift)

    @precondition(lambda self: self.world.cluster.alive)
    @rule(pick=PICK, how=st.sampled_from(["killed", "half", "gave up", "vanished", "false word"]))
    def trouble(self, pick: int, how: str) -> None:
        attempt, cluster = self._attempt(pick), self.world.cluster
        self.tally[f"attempt {how}"] += 1
        match how:
            case "killed":
                cluster.die(attempt, LaunchState.FAILED, "killed")
            case "half":
                self.world.leave_half(attempt)
            case "gave up":
                self.world.give_up(attempt)
            case "vanished":
                cluster.vanish(attempt)
            case _:
                cluster.claim(attempt, LaunchState.FAILED, "the head restarted")

    @precondition(lambda self: self.world.cluster.alive)
    @rule(pick=PICK)
    def outlive_a_stop(self, pick: int) -> None:
        self.world.cluster.stubborn.add(self._attempt(pick))

    @rule()
    def restart_head(self) -> None:
        self.tally["head restarted"] += 1
        self.world.cluster.restart_head()

    @rule(what=st.sampled_from(["is_down", "refuses"]), on=st.booleans())
    def switch(self, what: str, on: bool) -> None:
        setattr(self.world.cluster, what, on)

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.witness.look()

    def teardown(self) -> None:
        with self._open:
            try:
                if self.replicas:
                    come_to_an_end(self.world, list(self.replicas.values()), self.witness)
            finally:
                for replica in self.replicas.values():
                    replica.kill()
        self._count()

    def _count(self) -> None:
        self.tally["stories"] += 1
        self.tally["looks"] += self.witness.looks
        self.tally["live.json went back"] += self.witness.steps_back
        self.tally.update(self.witness.ends)

    def _attempt(self, pick: int) -> str:
        attempts = self.world.cluster.alive
        return attempts[pick % len(attempts)]

    def _picked(self, several: Sequence[T], pick: int) -> T | None:
        return several[pick % len(several)] if several else None


def test_no_story_of_two_replicas_breaks_anything(
    template: Template, capsys: pytest.CaptureFixture[str]
) -> None:
    TwoReplicas.template, TwoReplicas.database_url = template, None
    _tell_stories(TwoReplicas, _EXAMPLES, capsys)


def _tell_stories(
    machine: type[TwoReplicas], examples: int, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.tally = Counter()
    began = time.monotonic()
    is_short = "CMCL_FAULT_EXAMPLES" not in os.environ
    run_state_machine_as_test(
        machine,
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
        print(f"\n  {time.monotonic() - began:.1f} s")
        for what, count in sorted(machine.tally.items()):
            print(f"    {what}: {count}")
    assert machine.tally["published"] > examples / 2, "the stories are too sad to tell anything"
