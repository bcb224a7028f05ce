"""Ray Train runs: ranks that share the batch, restarted by Ray when one of them dies.

`run_attempt` runs one attempt with ranks of its own, `run_pool` the attempts of a pool, one after another. Either may be
elastic: when a node is lost it continues with fewer ranks, and with more when the cluster has resources again.

The process that starts a run and Ray Train's controller import this module, and compute nothing: only ranks
load torch, which takes 300 MB and some seconds in each process.
"""

import gc
import os
import threading
import traceback
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow.fs
import ray.train
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.constants import (
    DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S,
    TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S,
)
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
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import (
    ControllerError,
    PreemptionError,
    TrainingFailedError,
    WorkerGroupError,
)

from cmcl.contract.errors import NON_RETRYABLE
from cmcl.contract.job import submission_id
from cmcl.memory import keep_freed_memory, release_memory
from cmcl.storage.layout import run_prefix
from cmcl.storage.s3 import S3Store
from cmcl.storage.uris import open_store
from workers.sandbox.child_process import give_way_to_queries
from workers.train.queue import RESTARTS, Assignment, Retire
from workers.train.settings import Ranks, TrainSettings

if TYPE_CHECKING:
    import torch

    from workers.train.distributed import World

_UNLIMITED = -1
_SHUTDOWN_SECONDS = "3"
# Prefix of Ray Train's own files of pools in the store; they are small and few.
_POOL_PREFIX = "trainers"


def run_attempt(store_uri: str, job: str, attempt: int, ranks: Ranks) -> None:
    """Run one attempt on the cluster of this process. Raises what the ranks raised."""
    arguments = {"store_uri": store_uri, "job": job, "attempt": attempt}
    # One run name per attempt: Ray silently resumes under a name that it has had before.
    files = _run_files(store_uri, f"{run_prefix(job, attempt)}/ray", submission_id(job, attempt))
    failures = FailureConfig(
        max_failures=RESTARTS
    )  # Preemptions and changes of size are not counted.
    callbacks: list[Any] = [_StopOnNonRetryable()]
    run = RunConfig(failure_config=failures, callbacks=callbacks, **files)
    _trainer(_train_one, arguments, run, ranks).fit()


def run_pool(store_uri: str, ranks: Ranks, actor: Any) -> None:
    """Train the attempts of a pool's `actor` until its queue retires the ranks. Raises if Ray gives up."""
    files = _run_files(store_uri, _POOL_PREFIX, f"pool-{uuid.uuid4().hex[:12]}")
    failures = FailureConfig(max_failures=_UNLIMITED)
    callbacks: list[Any] = [_ShortShutdown(), FailureReporter(actor)]
    run = RunConfig(failure_config=failures, callbacks=callbacks, **files)
    _trainer(_train_many, {"actor": actor}, run, ranks).fit()


def _trainer(
    on_rank: Callable[[dict[str, Any]], None],
    arguments: dict[str, Any],
    run: RunConfig,
    ranks: Ranks,
) -> DataParallelTrainer:
    """Raises ValidationError for settings out of range."""
    peer_seconds = TrainSettings().peer_seconds
    set_ray_train_variables(peer_seconds)
    # Moments are summed in float64 on the host, even if gradients are reduced by NCCL.
    backend = "cpu:gloo,cuda:nccl" if ranks.gpus_each else "gloo"
    gpus = {"GPU": ranks.gpus_each} if ranks.gpus_each else {}
    is_elastic = ranks.fewest < ranks.most
    return DataParallelTrainer(
        on_rank,
        train_loop_config=arguments,
        backend_config=ProcessGroup(backend, round(peer_seconds)),
        scaling_config=ScalingConfig(
            # Typed as of before elasticity.
            num_workers=(ranks.fewest, ranks.most) if is_elastic else ranks.most,  # type: ignore[arg-type]
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": 1.0, **gpus},
        ),
        run_config=run,
    )


def set_ray_train_variables(peer_seconds: float) -> None:
    """Set the environment of a process that starts a run, as far as it is not set; Ray Train passes it on.

    `peer_seconds`: how long ranks wait for each other in a collective, and Ray Train for the health check of a
    rank. The first one to expire restarts the group. It must be longer than what one rank may do while
    the others wait, such as retrying a store that comes back after half a minute.
    """
    variables = {
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{peer_seconds:g}",
        # Time until a death is noticed. The default of two seconds would add to every restart.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        # An elastic group requests as many ranks as were possible up to 20 s ago. When a node is gone,
        # this is how long it waits before it requests fewer. Resources that exist are granted
        # within a second.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    }
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _run_files(store_uri: str, prefix: str, name: str) -> dict[str, Any]:
    """Arguments of RunConfig for Ray Train's own files, which are in the same store as ours."""
    store = open_store(store_uri)
    if not isinstance(store, S3Store):
        return {"name": name, "storage_path": str(Path(urlsplit(store.uri).path) / prefix)}
    filesystem = pyarrow.fs.S3FileSystem(endpoint_override=store.endpoint_url, region=store.region)
    return {
        "name": name,
        "storage_filesystem": filesystem,
        "storage_path": f"{store.bucket}/{store.prefix}{prefix}",
    }


# --- What each rank does --------------------------------------------------------------------------


def _train_one(config: dict[str, Any]) -> None:
    from workers.train.job import train_dataset

    train_dataset(device=_prepare_rank(), **config)


def _train_many(config: dict[str, Any]) -> None:
    train_attempts(config["actor"], _prepare_rank())


def _prepare_rank() -> "torch.device":
    """Set up the process of a rank: its priority, and preemption notices unless Ray has them off. Returns its device."""
    import torch
    from ray.train.torch import get_device

    from workers.train.checkpoint import watch_for_preemption

    give_way_to_queries()
    keep_freed_memory()
    if os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0":
        watch_for_preemption(ray.train.get_preemption_info)
    device: torch.device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def train_attempts(actor: Any, device: "torch.device") -> None:
    """Train one attempt after another.

    An error ends the whole group, and Ray starts a new one: ranks that are not at the same point of
    the same attempt must never meet in a collective.
    """
    from workers.train.distributed import barrier, world
    from workers.train.versions import release_kept_memory

    here = world()
    # The group is reported once all its ranks are there, and before any of them asks for an attempt.
    barrier(here)
    if here.is_leader:
        ray.get(actor.group_started.remote())
        threading.Thread(target=_exit_when_abandoned, args=[actor], daemon=True).start()
    barrier(here)
    done, has_freed = 0, True
    while True:
        found: Any = ray.get(actor.wait_for_next.remote(done))
        if isinstance(found, Retire):
            return
        if isinstance(found, Assignment):
            _train(found, actor, here, device)
            done, has_freed = found.number, False
        elif not has_freed:
            # The next attempt may come in an hour. One that comes at once needs the same memory, which the kernel clears.
            release_kept_memory()
            release_device_memory(device)
            has_freed = True


def _train(assignment: Assignment, actor: Any, here: "World", device: "torch.device") -> None:
    from workers.train.job import train_dataset

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
            ray.get(actor.attempt_succeeded.remote(assignment.number))


def release_device_memory(device: "torch.device") -> None:
    """Return freed memory to the system and the GPU."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    release_memory()


def _exit_when_abandoned(actor: Any) -> None:
    """End the process: training cannot be interrupted otherwise, and may be in a collective."""
    while not ray.get(actor.wait_until_abandoned.remote()):
        pass
    os._exit(1)


# --- How ranks join and leave their process group -------------------------------------------------


@dataclass(frozen=True)
class ProcessGroup(BackendConfig):
    """The process group of torch that the ranks join, as with Ray's TorchConfig, whose module imports torch.

    `backend`: as of torch.distributed. `timeout_s`: of its collectives.
    """

    backend: str
    timeout_s: int

    @property
    def backend_cls(self) -> type[Backend]:
        """See BackendConfig."""
        return _ProcessGroupBackend


class _ProcessGroupBackend(Backend):
    """Runs in Ray Train's controller, and calls functions on ranks."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:  # type: ignore[override]
        """Have all ranks join."""
        address, port = worker_group.execute_single(0, get_address_and_port)
        size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, backend_config, (address, port), rank, size
                )
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Have all ranks leave. One that hangs is ended after this."""
        default = str(DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S)
        seconds = float(os.environ.get(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, default))
        calls = worker_group.execute_async(_leave, is_group=len(worker_group) > 1)
        with suppress(GetTimeoutError):
            ray.get(calls, timeout=seconds)


def _join(group: ProcessGroup, address: tuple[str, int], rank: int, size: int) -> None:
    """Join the process group, as a rank of Ray's own TorchConfig does."""
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    host, port = address
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
    _set_torch_distributed_env_vars()  # type: ignore[no-untyped-call]
    _setup_torch_process_group(group.backend, rank, size, "env://", group.timeout_s)


def _leave(*, is_group: bool) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=is_group)  # type: ignore[no-untyped-call]


# --- Which ends of ranks are failures: callbacks of Ray Train's controller ------------------------


class _ShortShutdown(UserCallback):
    """Runs when ranks have ended with errors, before they are replaced."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Shorten the shutdown of process groups, which takes half a minute if a rank hangs."""
        os.environ.setdefault(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, _SHUTDOWN_SECONDS)


class _StopOnNonRetryable(_ShortShutdown):
    """Ends the run on errors that new ranks would meet again: an error raised here is final."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the error of a rank if it is not retryable."""
        super().after_exception(run_context, worker_exceptions)
        for error in worker_exceptions.values():
            if isinstance(error, NON_RETRYABLE):
                raise error


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
            if _is_rank_failure(error):
                self._actor.group_failed.remote(str(error))


def _is_rank_failure(error: TrainingFailedError) -> bool:
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
