"""Failures of a group that Ray Train's controller replaces."""

import inspect
import pickle

import pytest
from ray.exceptions import RayActorError
from ray.train import RunConfig
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
from ray.train.v2.api.exceptions import (
    ControllerError,
    PreemptionError,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.v2.api.preemption import PreemptionInfo

from workers.train.pool.actor import PoolActor
from workers.train.pool.ranks import FailureReporter, report_failure


def told_of(*states: TrainControllerState) -> list[str]:
    reported: list[str] = []
    callback = FailureReporter(reported.append)
    for state in states:
        callback.after_controller_state_update(RunningState(), state)
    return reported


def lost(*, preempted: bool) -> TrainingFailedError:
    """Rank 1 does not answer, and its peer fails in a collective."""
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


def test_ray_train_takes_the_callback_to_its_controller() -> None:
    assert inspect.iscoroutinefunction(PoolActor.group_failed)
    callback = FailureReporter(report_failure)
    assert RunConfig(name="any", callbacks=[callback]).callbacks == [callback]
    assert isinstance(pickle.loads(pickle.dumps(callback)), FailureReporter)
