"""The Ray Train run of a pool, and which ends of its ranks are failures.

The actor of the pool starts the run, and Ray Train's controller reports failures of the group. Neither loads torch.
"""

import uuid
from typing import Any

from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    ReschedulingState,
    RestartingState,
    TrainControllerState,
)
from ray.train.v2.api.exceptions import (
    ControllerError,
    PreemptionError,
    TrainingFailedError,
    WorkerGroupError,
)

from workers.train.pool.setup import PoolSetup
from workers.train.ray_run import Ranks, ShortShutdown, prepare_rank, run_files, trainer

_UNLIMITED = -1
# Prefix of Ray Train's own files in the store; they are small and few.
_PREFIX = "trainers"


def run_pool_group(store_uri: str, setup: PoolSetup, actor: Any) -> None:
    """Run ranks that train the attempts of `actor` until its queue retires them. Raises if Ray gives up."""
    files = run_files(store_uri, _PREFIX, f"pool-{uuid.uuid4().hex[:12]}")
    failures = FailureConfig(max_failures=_UNLIMITED)
    callbacks: list[Any] = [ShortShutdown(), FailureReporter(actor)]
    run = RunConfig(failure_config=failures, callbacks=callbacks, **files)
    ranks = Ranks(setup.ranks, setup.min_ranks, setup.gpus_per_rank)
    trainer(_serve_on_rank, {"actor": actor}, run, ranks).fit()


class FailureReporter(ControllerCallback):
    """Reports each group that failed to the actor, with Ray Train's message."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Resizing is another state and is not reported."""
        if isinstance(current_state, RestartingState | ReschedulingState):
            error = current_state.training_failed_error
            if is_rank_failure(error):
                self._actor.group_failed.remote(str(error))


def is_rank_failure(error: TrainingFailedError) -> bool:
    """Whether the attempt may be the cause: not for preemption or for missing resources."""
    if isinstance(error, WorkerGroupError):
        return not any(_was_preempted(each) for each in error.worker_failures.values())
    if isinstance(error, ControllerError):
        return not isinstance(error.controller_failure, WorkerGroupStartupTimeoutError)
    return not isinstance(error, PreemptionError)


def _was_preempted(failure: Any) -> bool:
    if isinstance(failure, WorkerHealthCheckFailedError):
        failure = failure.health_check_failure
    return isinstance(failure, RayActorError) and failure.preempted


def _serve_on_rank(config: dict[str, Any]) -> None:
    from workers.train.pool.ranks import train_attempts

    train_attempts(config["actor"], prepare_rank())
