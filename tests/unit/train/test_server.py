"""The driver's part of training: each request is trained once, ends with an outcome, and stops when it disappears."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from cmcl.contract.errors import ObjectNotFound, StorageUnavailable
from cmcl.contract.job import AttemptOutcome, AttemptRequest, submission_id
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.local import LocalStore
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.running import newest_progress
from workers.train.queue import RESTARTS, Attempt, AttemptQueue, AttemptStatus
from workers.train.server import AttemptServer, PoolLost
from workers.train.settings import PoolSetup, Ranks

SETUP = PoolSetup(Ranks(2, 2), "code")
IDLE_SECONDS = 1800.0


class Seconds:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class FakePool:
    """A pool whose ranks do what the test says."""

    def __init__(self, setup: PoolSetup, clock: Seconds) -> None:
        self.setup = setup
        self.queue = AttemptQueue(clock)
        self.queue.group_started()
        self.has_ended = self.is_lost = self.is_starting = False
        self.wanted: Mapping[Attempt, str] = {}
        self._trained = 0

    def has_started(self) -> bool:
        """See `Pool`."""
        return not self.is_starting

    def exchange(self, wanted: Mapping[Attempt, str]) -> Mapping[Attempt, AttemptStatus]:
        """See `Pool`."""
        assert not self.has_ended
        if self.is_lost:
            raise PoolLost("the actor died")
        if self.is_starting:
            return {}
        self.wanted = wanted
        self.queue.want(wanted)
        # The ranks ask for work at once.
        self.queue.next(after=self._trained)
        return {attempt: self.queue.status(attempt) for attempt in wanted}

    def finish(self) -> str:
        """Complete the attempt in training, and return its job."""
        found = self.queue.next(after=self._trained)
        assert found is not None
        self.queue.attempt_succeeded(found.number)  # type: ignore[union-attr]
        self._trained += 1
        return found.attempt.job  # type: ignore[union-attr]

    def fail(self, message: str) -> None:
        """Fail the attempt in training."""
        self._trained += 1
        self.queue.attempt_failed(self._trained, message)

    def end(self) -> None:
        """See `Pool`."""
        self.has_ended = True


class Scene:
    """A store with requests, a driver, and its pools."""

    def __init__(self, folder: Path) -> None:
        self.store = FlakyStore(LocalStore(folder))
        self.clock = Seconds()
        self.pools: list[FakePool] = []
        self.code = SETUP.code
        self.has_room = self.pools_start_slowly = False
        self.server = self.new_driver()

    def new_driver(self) -> AttemptServer:
        return AttemptServer(
            self.store, self._start, self._setup, lambda _: self.has_room, 0.0, clock=self.clock
        )

    def request(self, job: str = "job-1", attempt: int = 1, owner: str = "a", **fields: int) -> str:
        size = {"ranks": 2, "min_ranks": 2, "gpus_per_rank": 0, **fields}
        request = AttemptRequest(
            job=job, attempt=attempt, owner=owner, idle_seconds=IDLE_SECONDS, **size
        )
        name = submission_id(job, attempt)
        self.store.put(layout.attempt_request(name), request.model_dump_json().encode())
        return name

    def withdraw(self, name: str) -> None:
        self.store.delete(layout.attempt_request(name))

    def steps(self, times: int = 1, seconds: float = 0.1) -> None:
        for _ in range(times):
            self.clock.now += seconds
            self.server.step()

    def outcome(self, name: str) -> AttemptOutcome | None:
        try:
            return read_document(self.store, layout.attempt_outcome(name), AttemptOutcome)
        except ObjectNotFound:
            return None

    def requested(self) -> list[str]:
        return list(self.store.keys(layout.attempts()))

    def phase(self, job: str) -> tuple[str, str | None] | None:
        progress = newest_progress(self.store, job, 1)
        return None if progress is None else (progress.phase, progress.note)

    def _start(self, setup: PoolSetup) -> FakePool:
        self.pools.append(FakePool(setup, self.clock))
        self.pools[-1].is_starting = self.pools_start_slowly
        return self.pools[-1]

    def _setup(self, request: AttemptRequest) -> PoolSetup:
        return PoolSetup(Ranks(request.ranks, request.min_ranks), self.code)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "store")


def test_a_request_is_trained_once_and_ends_with_an_outcome(scene: Scene) -> None:
    name = scene.request()
    scene.steps(3)
    (pool,) = scene.pools
    assert list(pool.wanted) == [Attempt(scene.store.uri, "job-1", 1)]
    assert scene.outcome(name) is None
    pool.finish()
    scene.steps(3)
    assert scene.outcome(name) == AttemptOutcome(state="succeeded")
    assert (scene.requested(), scene.server.is_idle, dict(pool.wanted)) == ([], True, {})
    assert not pool.has_ended, "its ranks stay"


def test_a_failure_is_written_with_its_reason(scene: Scene) -> None:
    name = scene.request()
    scene.steps()
    scene.pools[0].fail("NaN in column b")
    scene.steps()
    assert scene.outcome(name) == AttemptOutcome(state="failed", message="NaN in column b")


def test_a_step_says_whether_a_request_has_come_gone_or_ended(scene: Scene) -> None:
    assert not scene.server.step()
    name = scene.request()
    assert scene.server.step()
    assert not scene.server.step()
    scene.pools[0].finish()
    assert scene.server.step()
    other = scene.request("job-2")
    assert scene.server.step()
    scene.withdraw(other)
    assert scene.server.step()
    assert scene.outcome(name) is not None
    assert not scene.server.step()


def test_an_attempt_whose_request_disappears_stops_and_the_next_one_is_trained(
    scene: Scene,
) -> None:
    stopped, following = scene.request(), scene.request("job-2")
    scene.steps()
    scene.withdraw(stopped)
    scene.steps()
    (pool,) = scene.pools
    assert pool.queue.is_abandoned()
    pool.queue.group_started()
    assert pool.finish() == "job-2"
    scene.steps()
    assert (scene.outcome(stopped), scene.outcome(following)) == (
        None,
        AttemptOutcome(state="succeeded"),
    )


def test_the_next_driver_takes_up_an_attempt_and_it_ends_once(scene: Scene) -> None:
    name = scene.request()
    scene.steps()
    scene.server = scene.new_driver()
    scene.steps()
    killed, pool = scene.pools
    assert killed.wanted == pool.wanted
    pool.finish()
    scene.steps()
    assert scene.outcome(name) == AttemptOutcome(state="succeeded")
    scene.steps(3)
    assert len(scene.pools) == 2


def test_of_two_drivers_the_first_outcome_counts(scene: Scene) -> None:
    name = scene.request()
    one, two = scene.server, scene.new_driver()
    one.step()
    two.step()
    scene.pools[0].finish()
    scene.pools[1].fail("it ran beside another")
    one.step()
    two.step()
    assert scene.outcome(name) == AttemptOutcome(state="succeeded")


def test_a_request_with_an_outcome_is_not_trained(scene: Scene) -> None:
    """It was submitted again by a process that was delayed, or its driver died between the two."""
    name = scene.request()
    stopped = AttemptOutcome(state="stopped")
    scene.store.create(layout.attempt_outcome(name), stopped.model_dump_json().encode())
    scene.steps()
    assert (scene.pools, scene.requested(), scene.outcome(name)) == ([], [], stopped)


def test_a_request_that_cannot_be_read_is_reported_and_does_not_stop_others(scene: Scene) -> None:
    scene.store.put(layout.attempt_request("job-0-a1"), b'{"job": "job-0"}')
    name = scene.request()
    scene.steps()
    outcome = scene.outcome("job-0-a1")
    assert outcome is not None
    assert outcome.state == "failed"
    assert "attempt\n  Field required" in outcome.message
    scene.pools[0].finish()
    scene.steps()
    assert scene.outcome(name) == AttemptOutcome(state="succeeded")


def test_a_superseded_attempt_fails(scene: Scene) -> None:
    first = scene.request()
    scene.steps()
    second = scene.request(attempt=2)
    scene.steps()
    outcome = scene.outcome(first)
    assert outcome is not None
    assert (outcome.state, outcome.message) == ("failed", "a later attempt of this job has started")
    scene.pools[0].queue.group_started()
    scene.pools[0].finish()
    scene.steps()
    assert scene.outcome(second) == AttemptOutcome(state="succeeded")


def test_an_outcome_that_could_not_be_written_is_written_later(scene: Scene) -> None:
    name = scene.request()
    scene.steps()
    scene.pools[0].finish()
    scene.store.broken = "outcomes/"
    for _ in range(3):
        with pytest.raises(StorageUnavailable):
            scene.steps()
    scene.store.broken = None
    scene.steps()
    assert scene.outcome(name) == AttemptOutcome(state="succeeded")


@pytest.mark.parametrize("edited", [False, True])
def test_ranks_of_another_size_or_code_are_replaced_when_they_are_free(
    scene: Scene, edited: bool
) -> None:
    scene.request()
    scene.steps()
    scene.code = "edited" if edited else SETUP.code
    scene.request("job-2", ranks=2 if edited else 4)
    scene.steps(3)
    assert len(scene.pools) == 1, "what is trained is not interrupted"
    assert scene.phase("job-2") == ("waiting", None)
    scene.pools[0].finish()
    scene.steps(2)
    old, new = scene.pools
    assert old.has_ended
    assert new.setup == PoolSetup(Ranks(2 if edited else 4, 2), scene.code)
    assert [each.job for each in new.wanted] == ["job-2"]


def test_a_resident_pool_trains_the_first_attempt(scene: Scene) -> None:
    scene.server.resident = scene._start(SETUP)
    scene.request()
    scene.steps()
    assert len(scene.pools) == 1
    assert scene.pools[0].wanted


def test_idle_ranks_end_and_start_with_the_next_request(scene: Scene) -> None:
    scene.request()
    scene.steps()
    scene.steps(seconds=2 * IDLE_SECONDS)
    (first,) = scene.pools
    first.finish()
    scene.steps(2)
    scene.steps(seconds=IDLE_SECONDS - 1)
    assert not first.has_ended, "they were used until then"
    scene.steps(seconds=1)
    assert first.has_ended
    scene.steps(3)
    assert len(scene.pools) == 1
    scene.request("job-2")
    scene.steps()
    assert len(scene.pools) == 2


def test_ranks_with_an_idle_time_of_zero_stay(scene: Scene) -> None:
    scene.server.resident = scene._start(SETUP)
    scene.steps(seconds=1e9)
    assert not scene.pools[0].has_ended


def test_an_attempt_that_waits_gets_ranks_of_its_own_once_there_is_room(scene: Scene) -> None:
    scene.request()
    second = scene.request("job-2")
    scene.steps(30, seconds=1.0)
    assert len(scene.pools) == 1, "there is no room"
    scene.has_room = True
    scene.steps(2, seconds=1.0)
    resident, own = scene.pools
    assert [next(iter(pool.wanted)).job for pool in (resident, own)] == ["job-1", "job-2"]
    own.finish()
    scene.steps()
    assert scene.outcome(second) == AttemptOutcome(state="succeeded")
    assert (own.has_ended, resident.has_ended) == (True, False)


def test_an_attempt_waits_for_as_long_as_ranks_of_its_own_would_take_to_start(
    scene: Scene,
) -> None:
    scene.has_room = True
    for job in ("job-1", "job-2", "job-3"):
        scene.request(job)
    scene.steps(19, seconds=1.0)
    assert len(scene.pools) == 1
    scene.steps(3, seconds=1.0)
    assert len(scene.pools) == 2
    scene.steps(16, seconds=1.0)
    assert len(scene.pools) == 2, "those that start have not taken their resources yet"
    scene.steps(5, seconds=1.0)
    assert len(scene.pools) == 3


def test_ranks_of_a_stopped_attempt_alone_end_with_it(scene: Scene) -> None:
    scene.has_room = True
    scene.request()
    second = scene.request("job-2")
    scene.steps(22, seconds=1.0)
    scene.withdraw(second)
    scene.steps()
    assert [pool.has_ended for pool in scene.pools] == [False, True]


def test_an_attempt_survives_the_loss_of_its_pool_and_fails_after_three(scene: Scene) -> None:
    name, behind = scene.request(), scene.request("job-2")
    for number in range(RESTARTS + 1):
        scene.steps(2)
        assert scene.outcome(name) is None
        assert len(scene.pools) == number + 1
        scene.pools[-1].is_lost = True
        scene.steps()
    outcome = scene.outcome(name)
    assert outcome is not None
    assert outcome.message == "the process of its ranks ended 3 times: the actor died"
    scene.steps(2)
    scene.pools[-1].finish()
    scene.steps()
    assert scene.outcome(behind) == AttemptOutcome(state="succeeded"), "it is not the cause"
    assert all(pool.has_ended for pool in scene.pools[:-1])


def test_a_pool_that_never_responds_before_it_dies_ends_its_attempts(scene: Scene) -> None:
    scene.pools_start_slowly = True
    name = scene.request()
    for _ in range(RESTARTS + 1):
        assert scene.outcome(name) is None
        scene.steps(2)
        scene.pools[-1].is_lost = True
        scene.steps()
    assert scene.outcome(name) is not None


def test_an_attempt_that_waits_reports_progress(scene: Scene) -> None:
    scene.request()
    scene.request("job-2")
    scene.steps(2)
    assert scene.phase("job-1") is None, "its ranks report it"
    assert scene.phase("job-2") == ("waiting", None)
    first = newest_progress(scene.store, "job-2", 1)
    scene.steps(2)
    assert newest_progress(scene.store, "job-2", 1) == first, "each write costs"
    scene.steps(seconds=5)
    assert newest_progress(scene.store, "job-2", 1) != first, "it is alive"


def test_an_attempt_without_ranks_says_so(scene: Scene) -> None:
    scene.request()
    scene.steps()
    scene.pools[0].queue.group_failed("a node was lost")
    scene.steps()
    assert scene.phase("job-1") == ("starting", "the training ranks are starting")
