"""The ranks of the pool: their Ray Train run, the loop of each rank, and which ends are failures.

Three kinds of processes run this code: the actor starts the run, Ray Train's controller reports
failures of the group, and each rank trains one attempt after another.
"""

import gc
import os
import threading
import traceback
import uuid
from typing import Any

import ray
import ray.train.torch
import torch
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

from cmcl.contract.errors import NON_RETRYABLE
from workers.memory import release_memory
from workers.train.distributed import World, barrier, world
from workers.train.job import train_dataset
from workers.train.pool.queue import Assignment, Retire
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


# --- In Ray Train's controller: it has the reason why a group is replaced; ranks have not -------


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


# --- In each rank -------------------------------------------------------------------------------


def _serve_on_rank(config: dict[str, Any]) -> None:
    prepare_rank()
    train_attempts(config["actor"], ray.train.torch.get_device())


def train_attempts(actor: Any, device: torch.device) -> None:
    """Train one attempt after another.

    An error ends the whole group, and Ray starts a new one: ranks that are not at the same point of
    the same attempt must never meet in a collective.
    """
    here = world()
    _report_start(actor, here)
    done = 0
    while True:
        found: Any = ray.get(actor.next.remote(done))
        if isinstance(found, Retire):
            return
        if isinstance(found, Assignment):
            _train(found, actor, here, device)
            done = found.number


def _report_start(actor: Any, here: World) -> None:
    """Report the group once all its ranks are there, and before any of them asks for an attempt."""
    barrier(here)
    if here.is_leader:
        ray.get(actor.group_started.remote())
        threading.Thread(target=_exit_when_abandoned, args=[actor], daemon=True).start()
    barrier(here)


def _train(assignment: Assignment, actor: Any, here: World, device: torch.device) -> None:
    attempt = assignment.attempt
    try:
        train_dataset(attempt.store_uri, attempt.job, attempt.attempt, device)
    except NON_RETRYABLE as error:
        ray.get(actor.attempt_failed.remote(assignment.number, str(error)))
        raise
    except BaseException:
        ray.get(actor.attempt_error.remote(assignment.number, traceback.format_exc()))
        raise
    else:
        if here.is_leader:
            ray.get(actor.attempt_done.remote(assignment.number))
    finally:
        # After the outcome is reported, so that its job does not wait for this.
        release_device_memory(device)


def release_device_memory(device: torch.device) -> None:
    """Return freed memory to the system and the GPU: the next attempt may come in an hour."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    release_memory()


def _exit_when_abandoned(actor: Any) -> None:
    """End the process: training cannot be interrupted otherwise, and may be in a collective."""
    while not ray.get(actor.is_abandoned.remote()):
        pass
    os._exit(1)
