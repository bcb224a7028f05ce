"""The scheduler: how many attempts run at once, whose are next, and what the others wait for."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.api.jobs import JobState
from service.core.settings import Settings
from service.jobs.scheduler import Scheduler, attempts_that_fit
from service.launchers.port import ClusterResources, LaunchState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient

PREPARED, RUNNING = JobState.PREPARED, JobState.RUNNING

MakePlane = Callable[..., "Shared"]


class Shared:
    """A control plane with several owners, each with its key."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.scheduler = Scheduler(plane.context)
        self._operator = KeyClient(plane, ADMIN_KEY)
        self._clients: dict[str, KeyClient] = {}

    def post(self, owner: str, model: str, name: str = "one", **changes: Any) -> str:
        """Post a dataset; the owner's model is created with the first one. Returns its job."""
        if owner not in self._clients:
            self._clients[owner] = self._operator.client_with_key(owner, owner=owner)
        self.plane.client = self._clients[owner]
        if self.plane.client.get(f"/v1/models/{model}").status_code == 404:
            self.plane.create_model(model)
        return self.plane.post_dataset(name, model, **changes)

    def set_priority(self, model: str, priority: str) -> None:
        """Set the priority of a model, as the owner of the last post."""
        path = f"/v1/models/{model}/gate"
        assert self.plane.client.put(path, json={"priority": priority}).status_code == 200

    def rounds(self, times: int = 6) -> None:
        """Let the reconciler and the scheduler work."""
        for _ in range(times):
            self.plane.tick()
            self.scheduler.tick()

    def end(self, job: str) -> None:
        """Train the job, and let the next one start."""
        train(self.plane.store, job, self.plane.job(job).attempt)
        self.rounds()

    def states(self, *jobs: str) -> list[JobState]:
        return [self.plane.job(job).state for job in jobs]

    def message(self, job: str) -> str:
        """The message of the job, as the API returns it."""
        answer = KeyClient(self.plane, ADMIN_KEY).get(f"/v1/jobs/{job}")
        return str(answer.json()["message"])


@pytest.fixture
def make_plane(tmp_path: Path) -> Iterator[MakePlane]:
    made: list[ControlPlane] = []

    def make(**settings: Any) -> Shared:
        made.append(ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY, **settings))
        return Shared(made[0])

    yield make
    for plane in made:
        plane.close()


def test_a_job_without_room_waits_as_a_row_and_says_why(make_plane: MakePlane) -> None:
    shared = make_plane(attempts_at_once=1)
    first, second = shared.post("a", "a1"), shared.post("a", "a2")
    shared.rounds()
    assert shared.states(first, second) == [RUNNING, PREPARED]
    assert list(shared.plane.launcher.submissions) == [f"{first}-a1"]
    assert shared.message(second) == (
        "waiting: 1 jobs run, 1 of them of this owner; the limit is 1. Before it wait 0 jobs of this owner"
    )
    shared.end(first)
    assert shared.states(second) == [RUNNING]
    assert shared.plane.job(second).message == "the attempt is starting on the cluster"


def test_a_limit_of_an_owner_keeps_its_jobs_waiting_and_no_others(make_plane: MakePlane) -> None:
    shared = make_plane(running_jobs_per_owner=2, owners={"b": {"running_jobs": 1}})
    of_a = [shared.post("a", f"a{number}") for number in range(4)]
    of_b = [shared.post("b", f"b{number}") for number in range(2)]
    shared.rounds()
    assert shared.states(*of_a, *of_b) == [RUNNING] * 2 + [PREPARED] * 2 + [RUNNING, PREPARED]
    assert shared.message(of_a[3]) == (
        "waiting: 2 jobs of this owner run, the limit is 2. Before it wait 1 jobs of this owner"
    )


def test_an_owner_without_a_running_job_is_next(make_plane: MakePlane) -> None:
    shared = make_plane(attempts_at_once=2)
    of_a = [shared.post("a", f"a{number}") for number in range(4)]
    shared.rounds()
    of_b = shared.post("b", "b0")
    shared.rounds()
    shared.end(of_a[0])
    assert shared.states(of_b, *of_a[1:]) == [RUNNING, RUNNING, PREPARED, PREPARED]


def test_owners_take_turns_where_one_attempt_runs_at_a_time(make_plane: MakePlane) -> None:
    shared = make_plane(attempts_at_once=1)
    waiting = {
        shared.post(owner, f"{owner}{number}"): owner for owner in "ab" for number in range(3)
    }
    order = ""
    shared.rounds()
    while waiting:
        (job,) = [job for job in waiting if shared.states(job) == [RUNNING]]
        order += waiting.pop(job)
        shared.end(job)
    assert order == "ababab"


def test_a_high_priority_does_not_pass_another_owner(make_plane: MakePlane) -> None:
    assert _next_after_a_high_one_of_another_owner(make_plane()) == "b"


def test_a_granted_high_priority_passes_other_owners(make_plane: MakePlane) -> None:
    shared = make_plane(owners={"a": {"high_priority": True}})
    assert _next_after_a_high_one_of_another_owner(shared) == "a"


def _next_after_a_high_one_of_another_owner(shared: Shared) -> str:
    """Whose job follows the running one of `a`: that of `b`, or one of `a` with a high priority."""
    limited = shared.plane.context.settings.model_copy(update={"attempts_at_once": 1})
    object.__setattr__(shared.plane.context, "settings", limited)
    running = shared.post("a", "a0")
    shared.rounds()
    of_b, of_a = shared.post("b", "b0"), shared.post("a", "a1")
    shared.set_priority("a1", "high")
    shared.rounds()
    shared.end(running)
    return {(RUNNING, PREPARED): "a", (PREPARED, RUNNING): "b"}[
        (shared.plane.job(of_a).state, shared.plane.job(of_b).state)
    ]


def test_a_high_priority_passes_other_models_of_its_owner(make_plane: MakePlane) -> None:
    shared = make_plane(attempts_at_once=1)
    running, normal, high = (shared.post("a", name) for name in ("a0", "a1", "a2"))
    shared.set_priority("a2", "high")
    shared.rounds()
    shared.end(running)
    assert shared.states(normal, high) == [PREPARED, RUNNING]


def test_a_priority_that_changes_while_its_job_waits_counts(make_plane: MakePlane) -> None:
    shared = make_plane(attempts_at_once=1)
    running, normal, high = (shared.post("a", name) for name in ("a0", "a1", "a2"))
    shared.rounds()
    shared.set_priority("a2", "high")
    shared.end(running)
    assert shared.states(normal, high) == [PREPARED, RUNNING]


def test_aging_ends_starvation_within_an_owner(make_plane: MakePlane) -> None:
    """A job of low priority is passed by later ones of high priority for two hours at most."""
    shared = make_plane(attempts_at_once=1)
    running = shared.post("a", "a-run")
    shared.rounds()
    low = shared.post("a", "a-low")
    shared.set_priority("a-low", "low")
    shared.rounds()
    for number in range(10):
        model = f"a-high{number}"
        later = shared.post("a", model)
        shared.set_priority(model, "high")
        shared.rounds()
        shared.plane.clock.advance(1000)
        shared.end(running)
        if shared.states(low) == [RUNNING]:
            break
        running = later
    assert shared.states(low) == [RUNNING]
    assert number * 1_000 > 2 * 3_600 - 1_000, "after two hours"


def test_a_lost_attempt_is_repeated_before_the_owners_other_jobs(make_plane: MakePlane) -> None:
    shared = make_plane(attempts_at_once=1)
    lost = shared.post("a", "a0")
    shared.rounds()
    others = [shared.post("a", f"a{number}") for number in (1, 2)]
    shared.rounds()
    shared.plane.launcher.end(f"{lost}-a1", LaunchState.FAILED, "killed")
    shared.rounds()
    # One may have taken the place that was free for a moment.
    for other in others:
        if shared.states(other) == [RUNNING]:
            shared.end(other)
    assert shared.states(lost) == [RUNNING]
    assert shared.plane.job(lost).attempt == 2
    assert PREPARED in shared.states(*others)


def test_preparations_are_shared_between_owners_and_dry_runs_count(make_plane: MakePlane) -> None:
    shared = make_plane(preparations_at_once=2)
    shared.plane.preparer = lambda store: None
    of_a = [shared.post("a", "a0", f"n{number}", dry_run=True) for number in range(3)]
    shared.rounds()
    of_b = shared.post("b", "b0")
    shared.rounds()
    preparing, queued = JobState.PREPARING, JobState.QUEUED
    assert shared.states(*of_a, of_b) == [preparing, preparing, queued, queued]
    assert shared.message(of_b).startswith("waiting: 2 jobs are prepared, 0 of them of this owner")
    assert shared.plane.client.post(f"/v1/jobs/{of_a[0]}/cancel").status_code == 404
    shared.post("a", "a0", "last")
    assert shared.plane.client.post(f"/v1/jobs/{of_a[0]}/cancel").status_code == 202
    shared.rounds()
    assert shared.states(of_a[2], of_b) == [queued, preparing]


@pytest.mark.parametrize(
    ("cluster", "settings", "attempts"),
    [
        ((8, 0, 64), {"ranks": 2}, 4),
        ((8, 0, 4), {"ranks": 2}, 1),
        ((64, 0, 8), {"ranks": 1}, 5),
        ((64, 4, 512), {"ranks": 2, "gpus_per_rank": 1}, 2),
        ((64, 1, 512), {"ranks": 1, "gpus_per_rank": 0.25}, 4),
        # An autoscaler adds nodes for what waits.
        ((0, 0, 0), {"ranks": 8}, 1),
    ],
)
def test_attempts_are_those_that_the_cluster_has_cpus_gpus_and_memory_for(
    cluster: tuple[float, float, float], settings: dict[str, Any], attempts: int
) -> None:
    cpus, gpus, gib = cluster
    found = attempts_that_fit(
        Settings(auth="off", **settings), ClusterResources(cpus, gpus, gib * 2**30)
    )
    assert found == attempts


def test_the_cluster_decides_how_many_run_and_one_until_it_responds(make_plane: MakePlane) -> None:
    shared = make_plane(ranks=2)
    launcher = shared.plane.launcher
    jobs = [shared.post("a", f"a{number}") for number in range(4)]
    launcher.is_down = True
    shared.rounds()
    assert shared.states(*jobs) == [JobState.SUBMITTING] + [PREPARED] * 3
    launcher.is_down, launcher.cluster = False, ClusterResources(6, 0, 64 << 30)
    shared.plane.clock.advance(60)
    shared.rounds()
    assert shared.states(*jobs) == [RUNNING] * 3 + [PREPARED]
