"""A Ray Train run: ranks that share the batch, restarted by Ray when one of them dies.

`run_on_ray` runs one attempt with ranks of its own. The pool (`pool/group.py`) runs one attempt after
another. Either may be elastic: when a node is lost it continues with fewer ranks, and with more when
the cluster has resources again.

The process that starts a run and Ray Train's controller import this module, and compute nothing: only ranks
load torch, which takes 300 MB and some seconds in each process.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow.fs
import ray.train
from ray.exceptions import GetTimeoutError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.constants import (
    DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S,
    TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S,
)
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cmcl.contract.errors import NON_RETRYABLE
from cmcl.contract.job import submission_id
from cmcl.storage.layout import run_prefix
from cmcl.storage.s3 import S3Store
from cmcl.storage.uris import open_store
from workers.sandbox.limits import give_way_to_queries
from workers.train.settings import TrainSettings

if TYPE_CHECKING:
    import torch

# Failures that a run survives. Preemptions and changes of size are not counted.
_RESTARTS = 2
_SHUTDOWN_SECONDS = "3"


@dataclass(frozen=True)
class Ranks:
    """How many processes share the batch, and how many GPUs each of them has.

    A run starts with fewer than `most`, down to `fewest`, if the cluster has no more. The global batch
    is the same for any number, and so is the version, to 1e-4 in the heads.
    """

    most: int
    fewest: int
    gpus_each: float

    @property
    def num_workers(self) -> int | tuple[int, int]:
        """Ray Train's argument: a pair for an elastic group."""
        return self.most if self.fewest == self.most else (self.fewest, self.most)


@dataclass(frozen=True)
class Timeouts:
    """Timeouts that end a hang, in seconds.

    `peer`: how long ranks wait for each other in a collective, and Ray Train for the health check of a
    rank. The first one to expire restarts the group. It must be longer than what one rank may do while
    the others wait, such as retrying a store that comes back after half a minute.
    """

    peer: float

    @property
    def ray_train_environment(self) -> dict[str, str]:
        """Environment variables for the process that starts a run; Ray Train passes them on."""
        return {
            "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{self.peer:g}",
            # Time until a death is noticed. The default of two seconds would add to every restart.
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            # An elastic group requests as many ranks as were possible up to 20 s ago. When a node is gone,
            # this is how long it waits before it requests fewer. Resources that exist are granted
            # within a second.
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
        }

    def apply_to_ray_train(self) -> None:
        """Set the variables that the environment does not define."""
        for name, value in self.ray_train_environment.items():
            os.environ.setdefault(name, value)


def current_timeouts() -> Timeouts:
    """Timeouts from the settings. Raises ValidationError for values out of range."""
    return Timeouts(TrainSettings().peer_seconds)


def run_on_ray(store_uri: str, job: str, attempt: int, ranks: Ranks) -> None:
    """Run one attempt on the cluster of this process. Raises what the ranks raised."""
    arguments = {"store_uri": store_uri, "job": job, "attempt": attempt}
    # One run name per attempt: Ray silently resumes under a name that it has had before.
    files = run_files(store_uri, f"{run_prefix(job, attempt)}/ray", submission_id(job, attempt))
    failures = FailureConfig(max_failures=_RESTARTS)
    callbacks: list[Any] = [_StopOnNonRetryable()]
    run = RunConfig(failure_config=failures, callbacks=callbacks, **files)
    trainer(_train_on_rank, arguments, run, ranks).fit()


def _train_on_rank(config: dict[str, Any]) -> None:
    from workers.train.job import train_dataset

    train_dataset(device=prepare_rank(), **config)


class ShortShutdown(UserCallback):
    """Runs in Ray Train's controller when ranks have ended with errors, before they are replaced."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Shorten the shutdown of process groups, which takes half a minute if a rank hangs."""
        os.environ.setdefault(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, _SHUTDOWN_SECONDS)


class _StopOnNonRetryable(ShortShutdown):
    """Ends the run on errors that new ranks would meet again: an error raised here is final."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the error of a rank if it is not retryable."""
        super().after_exception(run_context, worker_exceptions)
        for error in worker_exceptions.values():
            if isinstance(error, NON_RETRYABLE):
                raise error


def trainer(
    on_rank: Callable[[dict[str, Any]], None],
    arguments: dict[str, Any],
    run: RunConfig,
    ranks: Ranks,
) -> DataParallelTrainer:
    """The trainer of a run, with timeouts from the settings."""
    timeouts = current_timeouts()
    timeouts.apply_to_ray_train()
    return DataParallelTrainer(
        on_rank,
        train_loop_config=arguments,
        backend_config=_process_group(ranks, timeouts),
        scaling_config=ScalingConfig(
            num_workers=ranks.num_workers,  # type: ignore[arg-type]  # typed as of before elasticity
            use_gpu=ranks.gpus_each > 0,
            resources_per_worker=_resources(ranks),
        ),
        run_config=run,
    )


def _process_group(ranks: Ranks, timeouts: Timeouts) -> "ProcessGroup":
    # Moments are summed in float64 on the host, even if gradients are reduced by NCCL.
    backend = "cpu:gloo,cuda:nccl" if ranks.gpus_each else "gloo"
    return ProcessGroup(backend, round(timeouts.peer))


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


def _resources(ranks: Ranks) -> dict[str, float]:
    return {"CPU": 1.0, "GPU": ranks.gpus_each} if ranks.gpus_each else {"CPU": 1.0}


def prepare_rank() -> "torch.device":
    """Set up the process of a rank: its priority, and preemption notices unless Ray has them off. Returns its device."""
    import torch
    from ray.train.torch import get_device

    from workers.train.checkpoint import watch_for_preemption

    give_way_to_queries()
    if os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0":
        watch_for_preemption(ray.train.get_preemption_info)
    device: torch.device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def run_files(store_uri: str, prefix: str, name: str) -> dict[str, Any]:
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
