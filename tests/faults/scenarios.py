"""Scenarios of a dataset: what users and the cluster do, independently of the control plane.

They react to the state after each round, so they are the same whether or not a replica dies in
between.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cmcl.contract.api.jobs import FINAL_STATES, JobState
from cmcl.contract.model import Gate
from service.database.engine import Seek
from service.database.queries import datasets, models, versions
from service.database.rows import JobRow
from service.launchers.port import LaunchState
from tests.faults.world import BAD, MODEL, World

Act = Callable[[World], None]


@dataclass(frozen=True)
class Scenario:
    """`ends`: the states in which its jobs end, in the order of their arrival.

    Faults are injected from where it `is_distinct` from all others to where it `is_common` again.
    """

    name: str
    begin: Act
    react: Act
    ends: tuple[JobState, ...]
    is_distinct: Callable[[World], bool] = lambda _: True
    is_common: Callable[[World], bool] = lambda _: False


def is_quiet(world: World) -> bool:
    """Whether nothing is left to do."""
    with world.database.read() as connection:
        for model in models.page(connection, None, Seek()):
            if not model.is_pointer_written:
                return False
            if versions.oldest_unstored(connection, model.name) is not None:
                return False
    return all(job.state in FINAL_STATES for job in world.jobs())


def _one(world: World) -> None:
    world.post("good-0")


def _try_first(world: World) -> None:
    world.post("good-0", dry_run=True)
    world.post("good-0")


def _two(world: World) -> None:
    world.post("good-0")
    world.post("good-1")


def _two_and_measured(world: World) -> None:
    world.post("good-0")
    world.post("good-1", evaluate_only=True)
    world.post("good-2")


def _serve(world: World) -> None:
    """Start every submission, and let it succeed."""
    for attempt in list(world.cluster.alive):
        _get_on(world, attempt)


def _get_on(world: World, attempt: str) -> None:
    if world.cluster.word(attempt) == LaunchState.PENDING:
        world.start(attempt)
    else:
        world.complete(attempt, LaunchState.SUCCEEDED)


def _serve_but_first(trouble: Callable[[World, str], None]) -> Act:
    """Fail the first attempt once it runs."""

    def react(world: World) -> None:
        for attempt in list(world.cluster.alive):
            is_running = world.cluster.word(attempt) == LaunchState.RUNNING
            if attempt == world.cluster.ever[0] and is_running and world.once("trouble"):
                trouble(world, attempt)
            else:
                _get_on(world, attempt)

    return react


def _lost(world: World, attempt: str) -> None:
    world.cluster.die(attempt, LaunchState.FAILED, "killed")


def _lost_behind_checkpoint(world: World, attempt: str) -> None:
    world.checkpoint(attempt, 900)
    world.cluster.die(attempt, LaunchState.FAILED, "killed")


def _false_word(world: World, attempt: str) -> None:
    """The head reports a failure although the attempt succeeds later."""
    world.cluster.claim(attempt, LaunchState.FAILED, "the head restarted")


def _forgotten(world: World, attempt: str) -> None:
    world.cluster.restart_head()
    world.cluster.vanish(attempt)


def _retried(world: World) -> None:
    _serve_but_first(lambda world, attempt: world.give_up(attempt))(world)
    for job in _in(world, JobState.FAILED):
        world.retry(job.id)


def _with_gate(gate: Gate) -> Act:
    def begin(world: World) -> None:
        world.set_gate(gate)
        _one(world)

    return begin


def _said(word: Callable[[World, str], bool], state: JobState) -> Act:
    """Call it once, as a user, for a job in that state."""

    def react(world: World) -> None:
        _serve(world)
        for job in _in(world, state):
            if world.once("said"):
                word(world, job.id)

    return react


def _retry_without_bounds(world: World, job: str) -> bool:
    return world.set_gate(Gate()) and world.retry(job)


def _slowly_prepared(world: World) -> None:
    """The driver was not running while the first requests were written."""
    if world.once("away"):
        world.store.is_away = True
    elif all(job.state == JobState.PREPARING for job in world.jobs()):
        world.prepare()
    _serve(world)


def _branched(world: World) -> None:
    _serve(world)
    if is_quiet(world) and world.once("branch"):
        assert world.branch("branched", 1)


def _unlearned(world: World) -> None:
    _serve(world)
    if is_quiet(world) and world.once("unlearn"):
        assert world.unlearn(world.jobs()[-1].dataset)


def _merged(world: World) -> None:
    """A branch of the first version takes over what the model learned after it."""
    _serve(world)
    if is_quiet(world) and world.once("branch"):
        assert world.branch("branched", 1)
    elif is_quiet(world) and world.once("merge"):
        # Rejected where the branch was lost with the records of it.
        world.merge("branched", 2)


def _rolled_back(world: World) -> None:
    _serve(world)
    if is_quiet(world) and world.once("roll back"):
        assert world.roll_back()


def _in(world: World, state: JobState) -> list[JobRow]:
    return [job for job in world.jobs() if job.state == state]


def _bad(world: World) -> None:
    world.post(BAD)


def _was(what: str) -> Callable[[World], bool]:
    return lambda world: world.was(what)


def _is_judged(world: World) -> bool:
    return any(job.state in (JobState.GATING, *FINAL_STATES) for job in world.jobs())


def _is_repeated(world: World) -> bool:
    return any(job.attempt == 2 and job.state == JobState.RUNNING for job in world.jobs())


def _first_has_ended(world: World) -> bool:
    return world.jobs()[0].state in FINAL_STATES


def _are_prepared(world: World) -> bool:
    return not any(job.state in (JobState.QUEUED, JobState.PREPARING) for job in world.jobs())


def _runs_after(*before: JobState) -> Callable[[World], bool]:
    """Whether these are the states of the first jobs, and the next one runs."""
    return lambda world: (
        tuple(job.state for job in world.jobs())[: len(before) + 1] == (*before, JobState.RUNNING)
    )


UNLEARNED, MERGED = "unlearned", "merged"
MEASURED = "measured and not learned"
RESUMED = "attempt lost behind a checkpoint"
PUBLISHED, REJECTED = JobState.PUBLISHED, JobState.REJECTED
HELD_FIRST = _with_gate(Gate(manual_approval=True))
# Without held-out rows the gain is not measured, so the candidate is rejected.
REJECTED_FIRST = _with_gate(Gate(min_gain=0.5))
TROUBLES = {
    "attempt lost": _lost,
    RESUMED: _lost_behind_checkpoint,
    "failed by a false word": _false_word,
    "head restarted": _forgotten,
}
SAID = {
    "held, approved": (HELD_FIRST, World.approve, JobState.HELD, PUBLISHED),
    "held, rejected": (HELD_FIRST, World.reject, JobState.HELD, REJECTED),
    "rejected, retried": (REJECTED_FIRST, _retry_without_bounds, REJECTED, PUBLISHED),
    "cancelled while preparing": (_one, World.cancel, JobState.PREPARING, JobState.CANCELLED),
    "cancelled while submitting": (_one, World.cancel, JobState.SUBMITTING, JobState.CANCELLED),
    "cancelled while running": (_one, World.cancel, JobState.RUNNING, JobState.CANCELLED),
    "cancelled while held": (HELD_FIRST, World.cancel, JobState.HELD, JobState.CANCELLED),
}

SCENARIOS = (
    Scenario("two datasets", _two, _serve, (PUBLISHED, PUBLISHED)),
    Scenario(
        "slowly prepared",
        _two,
        _slowly_prepared,
        (PUBLISHED, PUBLISHED),
        is_common=_are_prepared,
    ),
    Scenario(
        "tried without learning",
        _try_first,
        _serve,
        (JobState.REPORTED, PUBLISHED),
        is_common=_runs_after(JobState.REPORTED),
    ),
    Scenario(
        MEASURED,
        _two_and_measured,
        _serve,
        (PUBLISHED, JobState.EVALUATED, PUBLISHED),
        _first_has_ended,
        _runs_after(PUBLISHED, JobState.EVALUATED),
    ),
    Scenario("bad rows", _bad, _serve, (JobState.FAILED,)),
    Scenario("retried", _one, _retried, (PUBLISHED,), _was("trouble"), _is_repeated),
    Scenario(UNLEARNED, _two, _unlearned, (PUBLISHED,) * 3, _was("unlearn")),
    Scenario(MERGED, _two, _merged, (PUBLISHED,) * 3, _was("merge")),
    Scenario("branched", _one, _branched, (PUBLISHED,), _was("branch")),
    Scenario("rolled back", _two, _rolled_back, (PUBLISHED, PUBLISHED), _was("roll back")),
    *(
        Scenario(
            name,
            _one,
            _serve_but_first(trouble),
            (PUBLISHED,),
            _was("trouble"),
            _is_repeated,
        )
        for name, trouble in TROUBLES.items()
    ),
    *(
        Scenario(
            name,
            begin,
            _said(word, state),
            (end,),
            _is_judged if begin is not _one else _was("said"),
        )
        for name, (begin, word, state, end) in SAID.items()
    ),
)


def check_end(world: World, life: Scenario) -> None:
    """Check that the scenario reached its only permitted end."""
    ended = tuple(job.state for job in world.jobs())
    assert ended == life.ends
    with world.database.read() as connection:
        model = models.find(connection, MODEL)
    assert model is not None
    assert model.head == ended.count(PUBLISHED) - (life.name == MERGED)
    if life.name in (UNLEARNED, MERGED):
        _check_lineage(world, *((MODEL, 1) if life.name == UNLEARNED else ("branched", 2)))
    if life.name == "rolled back":
        assert (model.live_version, model.live_generation) == (1, 3)
    if life.name == MEASURED:
        with world.database.read() as connection:
            newest = versions.find(connection, MODEL, model.head)
        assert newest is not None
        assert len(newest.manifest.learned) == 2
        assert len(newest.manifest.report.evaluation_only) == 1
    if life.name == RESUMED:
        (job,) = world.jobs()
        assert (job.attempt, world.spec_of(job).resume_from) == (2, world.checkpoints[0])


def _check_lineage(world: World, name: str, learned: int) -> None:
    """The newest version of the model has learned so many datasets, and an unlearned one is deleted."""
    with world.database.read() as connection:
        model = models.find(connection, name)
        newest = versions.find(connection, name, model.head if model else 0)
        posted = [datasets.find(connection, str(job.dataset)) for job in world.jobs()[:2]]
    assert newest is not None
    assert len(newest.manifest.learned) == learned
    deleted = [dataset is not None and dataset.deleted_at is not None for dataset in posted]
    assert deleted == [False, newest.manifest.unlearned is not None]
