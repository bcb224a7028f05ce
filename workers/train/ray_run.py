"""Training as a Ray Train run: ranks that share the batch, restarted by Ray when one of them dies.

Two kinds: a run for one attempt, and a resident one that learns one attempt after another. Either
may be elastic: when a node goes, it goes on with fewer ranks, and with more once there is room.
"""

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs
import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.callback import UserCallback

from cmcl.contract.errors import HOPELESS
from cmcl.contract.job import submission_id
from workers.storage.layout import run_prefix
from workers.storage.s3 import S3Store
from workers.storage.uris import open_store
from workers.train.job import train_dataset
from workers.train.notice import listen_for_notice
from workers.train.patience import Patience, patience_here
from workers.train.warm.deaths import DeathsToldOf
from workers.train.warm.ranks import serve_attempts
from workers.train.warm.resident import NAME, NAMESPACE

# Deaths that one run survives. Nodes that go with notice are not counted, nor are changes of size.
_RESTARTS, _FOR_EVER = 2, -1
_GOODBYE_SECONDS = "3"
_NICENESS = 10
# Where the resident run has the files that Ray Train asks for; they are small and stay few.
_RESIDENT = "trainers"


@dataclass(frozen=True)
class Ranks:
    """How many processes share the batch, and what each of them has.

    Fewer than `most` are enough where there are not more, down to `fewest`. The global batch is the
    same whatever their number, so the version is too, to 1e-5.
    """

    most: int
    fewest: int
    gpus_each: float

    @property
    def number(self) -> int | tuple[int, int]:
        """As Ray Train wants it: a pair for a group that may change its size."""
        return self.most if self.fewest == self.most else (self.fewest, self.most)


def run_on_ray(store_uri: str, job: str, attempt: int, ranks: Ranks) -> None:
    """Run one attempt on the cluster that this process belongs to; raises what the ranks raised."""
    told = {"store_uri": store_uri, "job": job, "attempt": attempt}
    # One run name per attempt: Ray resumes silently under a name that it has seen.
    files = _files(store_uri, f"{run_prefix(job, attempt)}/ray", submission_id(job, attempt))
    failures = FailureConfig(max_failures=_RESTARTS)
    callbacks: list[Any] = [_OnlyWhatMayHelp()]
    run = RunConfig(failure_config=failures, callbacks=callbacks, **files)
    _trainer(_train_on_rank, told, run, ranks).fit()


def run_resident_group(store_uri: str, ranks: Ranks) -> None:
    """Ranks that serve attempts until the desk retires them; raises where Ray gives up."""
    files = _files(store_uri, _RESIDENT, f"resident-{uuid.uuid4().hex[:12]}")
    failures = FailureConfig(max_failures=_FOR_EVER)
    callbacks: list[Any] = [_ShortGoodbye(), DeathsToldOf(tell_resident)]
    run = RunConfig(failure_config=failures, callbacks=callbacks, **files)
    _trainer(_serve_on_rank, {}, run, ranks).fit()


def tell_resident(words: str) -> None:
    """That a group died. Called in Ray Train's controller, which ends with the resident."""
    ray.get_actor(NAME, NAMESPACE).group_died.remote(words)


class _ShortGoodbye(UserCallback):
    """Runs in Ray Train's controller when ranks have ended with errors, before they are replaced."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Ray Train would let a rank that hangs say goodbye to its peers for half a minute."""
        os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", _GOODBYE_SECONDS)


class _OnlyWhatMayHelp(_ShortGoodbye):
    """Ends the run where new ranks would fail alike: an error here is one that is not tried again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises what a rank raised, if it is of that kind."""
        super().after_exception(run_context, worker_exceptions)
        for error in worker_exceptions.values():
            if isinstance(error, HOPELESS):
                raise error


def _trainer(
    on_rank: Callable[[dict[str, Any]], None], told: dict[str, Any], run: RunConfig, ranks: Ranks
) -> TorchTrainer:
    patience = patience_here()
    patience.set_for_ray_train()
    return TorchTrainer(
        on_rank,
        train_loop_config=told,
        torch_config=_torch_config(ranks, patience),
        scaling_config=ScalingConfig(
            num_workers=ranks.number,  # type: ignore[arg-type]  # typed as of before elasticity
            use_gpu=ranks.gpus_each > 0,
            resources_per_worker=_resources(ranks),
        ),
        run_config=run,
    )


def _torch_config(ranks: Ranks, patience: Patience) -> TorchConfig:
    # Moments are summed in float64 on the host, also where gradients travel by NCCL.
    backend = "cpu:gloo,cuda:nccl" if ranks.gpus_each else "gloo"
    return TorchConfig(backend=backend, timeout_s=round(patience.peer))


def _resources(ranks: Ranks) -> dict[str, float]:
    return {"CPU": 1.0, "GPU": ranks.gpus_each} if ranks.gpus_each else {"CPU": 1.0}


def _train_on_rank(config: dict[str, Any]) -> None:
    _give_way()
    _listen()
    train_dataset(device=ray.train.torch.get_device(), **config)


def _serve_on_rank(_: dict[str, Any]) -> None:
    _give_way()
    _listen()
    serve_attempts(ray.train.torch.get_device())


def _give_way() -> None:
    """To the replicas, where a machine has both: somebody waits for their answers."""
    os.nice(_NICENESS)


def _listen() -> None:
    """Hear of nodes that are about to go, unless Ray Train was told not to look for them."""
    if os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0":
        listen_for_notice(ray.train.get_preemption_info)


def _files(store_uri: str, prefix: str, name: str) -> dict[str, Any]:
    """Where Ray Train keeps its own files: in the same store as ours."""
    store = open_store(store_uri)
    if not isinstance(store, S3Store):
        return {"name": name, "storage_path": str(Path(urlsplit(store.uri).path) / prefix)}
    filesystem = pyarrow.fs.S3FileSystem(endpoint_override=store.endpoint_url, region=store.region)
    return {
        "name": name,
        "storage_filesystem": filesystem,
        "storage_path": f"{store.bucket}/{store.prefix}{prefix}",
    }
