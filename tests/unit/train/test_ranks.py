"""Ranks of a group: it counts as started once all of them run, and failures of one replace the group.

Memory that an attempt has freed returns to the machine.
"""

import pickle
import platform
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.exceptions import RayActorError
from ray.train import RunConfig
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.controller.state import (
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
    TrainControllerState,
)
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.exceptions import (
    ControllerError,
    PreemptionError,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.v2.api.preemption import PreemptionInfo

from cmcl.contract.errors import TrainingDiverged
from workers.train import distributed, ranks
from workers.train.distributed import World
from workers.train.queue import Assignment, Attempt, Retire
from workers.train.ranks import FailureReporter, release_device_memory
from workers.train.settings import Ranks

PIECES, FLOATS = 200, 1 << 18
MIB = PIECES * FLOATS * 4 >> 20


class Called:
    """An actor whose methods return their names, and retire a rank that requests work."""

    def __init__(self, story: list[str]) -> None:
        self._story = story

    def __getattr__(self, name: str) -> "Method":
        return Method(name, self._story)


class Method:
    """A remote method that is answered at once."""

    def __init__(self, name: str, story: list[str]) -> None:
        self._name, self._story = name, story

    def remote(self, *_: Any) -> Any:
        """The answer, as no Ray is there to fetch it."""
        self._story.append(self._name)
        return Retire() if self._name == "wait_for_next" else None


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (0, ["meet", "group_started", "meet", "wait_for_next"]),
        (1, ["meet", "meet", "wait_for_next"]),
    ],
)
def test_a_group_is_reported_once_all_ranks_joined_and_before_any_requests_work(
    rank: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    story: list[str] = []
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(distributed, "world", lambda: World(rank, 2))
    monkeypatch.setattr(ranks, "_exit_when_abandoned", lambda _: None)
    monkeypatch.setattr(distributed, "barrier", lambda _: story.append("meet"))
    ranks.train_attempts(Called(story), torch.device("cpu"))
    assert story == expected


class Assigning:
    """An actor that has two attempts, then none for two calls, and one more before it retires the rank."""

    def __init__(self) -> None:
        attempts = [Assignment(number, Attempt("file:///store", "job", 1)) for number in (1, 2, 3)]
        self._answers = iter([*attempts[:2], None, None, attempts[2], Retire()])

    @property
    def wait_for_next(self) -> "Assigning":
        return self

    def remote(self, _: int) -> Any:
        return next(self._answers)


def test_memory_is_kept_between_attempts_and_released_once_none_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story: list[str] = []
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(distributed, "world", lambda: World(1, 2))
    monkeypatch.setattr(distributed, "barrier", lambda _: None)
    monkeypatch.setattr(ranks, "_train", lambda *_: story.append("train"))
    monkeypatch.setattr(ranks, "release_device_memory", lambda _: story.append("release"))
    ranks.train_attempts(Assigning(), torch.device("cpu"))
    assert story == ["train", "train", "release", "train"]


def own_mib() -> float:
    return psutil.Process().memory_full_info().uss / 2**20


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only the allocator of glibc is configurable"
)
def test_memory_that_was_freed_goes_back_to_the_system() -> None:
    # glibc maps large blocks by themselves until one was let go of, as ranks that have read did.
    torch.empty(31 << 20, dtype=torch.uint8)
    # Small ones that stay keep glibc from releasing what is below them.
    pieces = [(torch.ones(FLOATS), torch.ones(FLOATS // 16)) for _ in range(PIECES)]
    stay = [small for _, small in pieces]
    del pieces
    before = own_mib()
    release_device_memory(torch.device("cpu"))
    assert own_mib() < before - MIB / 2
    assert len(stay) == PIECES


class Reported:
    """An actor that keeps the errors that are reported to it."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.group_failed = self

    def remote(self, error: str) -> None:
        self.errors.append(error)


def told_of(*states: TrainControllerState) -> list[str]:
    actor = Reported()
    callback = FailureReporter(actor)
    for state in states:
        callback.after_controller_state_update(RunningState(), state)
    return actor.errors


def lost(*, preempted: bool) -> TrainingFailedError:
    """Rank 1 does not respond, and its peer fails in a collective."""
    gone = WorkerHealthCheckFailedError("rank 1", RayActorError(preempted=preempted))
    return WorkerGroupError("ranks failed", {0: RuntimeError("connection reset"), 1: gone})


def test_ranks_that_end_with_an_error_have_died() -> None:
    early = ControllerError(WorkerGroupStartupFailedError("an actor did not start"))
    words = told_of(RestartingState(lost(preempted=False)), ReschedulingState(early))
    assert ["ranks failed" in words[0], "an actor did not start" in words[1]] == [True, True]


@pytest.mark.parametrize(
    "state",
    [
        RunningState(),
        ResizingState(ResizeDecision(num_workers=4, resources_per_worker={"CPU": 1.0})),
        RestartingState(PreemptionError(PreemptionInfo(None, {}))),
        RestartingState(lost(preempted=True)),
        ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2))),
    ],
    ids=["runs", "grows", "drained", "preempted", "no-room"],
)
def test_running_growing_preempted_and_waiting_groups_have_not_died(
    state: TrainControllerState,
) -> None:
    assert told_of(state) == []


def test_ranks_of_one_attempt_do_not_try_again_what_fails_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An error that a callback raises ends the run of Ray Train."""
    runs: list[RunConfig] = []

    class Trainer:
        def __init__(self, *_: Any, run_config: RunConfig, **__: Any) -> None:
            runs.append(run_config)

        def fit(self) -> None:
            """As if it had run."""

    monkeypatch.setattr(ranks, "DataParallelTrainer", Trainer)
    # Which the callback sets for the process of the controller.
    monkeypatch.setenv(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, "3")
    ranks.run_attempt(tmp_path.as_uri(), "job-1", 1, Ranks(1, 1))
    [callback] = runs[0].callbacks or []
    assert isinstance(callback, UserCallback)
    context: Any = None
    callback.after_exception(context, {0: RuntimeError("connection reset")})
    with pytest.raises(TrainingDiverged):
        callback.after_exception(
            context, {0: RuntimeError("a peer left"), 1: TrainingDiverged("NaN")}
        )


def test_ray_train_takes_the_callback_to_its_controller() -> None:
    callback = FailureReporter(Reported())
    callbacks: Any = [callback]
    assert RunConfig(name="any", callbacks=callbacks).callbacks == callbacks
    assert isinstance(pickle.loads(pickle.dumps(callback)), FailureReporter)
