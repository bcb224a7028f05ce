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

    @rule(who=WHO, contacts=st.integers(1, 40))
    def go_on(self, who: str, contacts: int) -> None:
        """It may come to stand in the middle of a step, and see the world again much later."""
        for _ in range(contacts):
            self.replicas[who].go()

    @rule(who=WHO, rounds=st.integers(1, 8))
    def go_on_for_rounds(self, who: str, rounds: int) -> None:
        for _ in range(rounds):
            self.replicas[who].round()
            self.world.clock.advance(1)

    @rule(who=WHO, contacts=st.integers(0, 12), order=st.sampled_from([Order.FAIL, Order.LOSE]))
    def hear_an_error(self, who: str, contacts: int, order: Order) -> None:
        self.go_on(who, contacts)
        self.replicas[who].go(order)

    @rule(who=WHO, contacts=st.integers(0, 12))
    def kill(self, who: str, contacts: int) -> None:
        """The other one is there all the time; this one comes again at once, or much later."""
        self.go_on(who, contacts)
        self.replicas[who].kill()

    @precondition(lambda self: any(not replica.is_alive for replica in self.replicas.values()))
    @rule()
    def restart(self) -> None:
        for replica in self.replicas.values():
            replica.restart()

    @rule(seconds=st.sampled_from([1, 3, 5, 8, 25, 45, 400]))
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

    @precondition(lambda self: self.witness.head)
    @rule(act=st.sampled_from(["promote", "roll back", "branch"]), version=st.integers(1, 3))
    def move_live(self, act: str, version: int) -> None:
        match act:
            case "promote":
                done = self.world.promote(version)
            case "branch":
                done = self.world.branch("branched", version)
            case _:
                done = self.world.roll_back()
        self.tally[act] += done

    @rule(policy=st.sampled_from(POLICIES))
    def set_policy(self, policy: GatePolicy) -> None:
        self.world.set_policy(policy)

    # The cluster.

    @precondition(lambda self: self.world.cluster.alive)
    @rule(pick=PICK, updates=st.integers(0, 9))
    def get_on(self, pick: int, updates: int) -> None:
        attempt = self._attempt(pick)
        if self.world.cluster.word(attempt) == LaunchState.PENDING:
            self.world.start(attempt)
        else:
            self.world.progress(attempt, updates)

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

    @precondition(lambda self: self.world.cluster.commands)
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
    began, cpu = time.monotonic(), time.process_time()
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
        print(f"\n  {time.monotonic() - began:.1f} s, {time.process_time() - cpu:.1f} s of a CPU")
        for what, count in sorted(machine.tally.items()):
            print(f"    {what}: {count}")
    assert machine.tally["published"] > examples / 2, "the stories are too sad to tell anything"
