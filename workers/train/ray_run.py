"""Training as a Ray Train run: N ranks under DDP, restarted by Ray when one of them dies.

Two kinds: a run for one attempt, and a resident one that learns one attempt after another.
"""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from workers.contract.job import submission_id
from workers.storage.layout import run_prefix
from workers.storage.s3 import S3Store
from workers.storage.uris import open_store
from workers.train.job import train_dataset
from workers.train.warm.ranks import serve_attempts

# A rank whose peer died waits this long for it before Ray restarts the group.
_PEER_TIMEOUT_SECONDS = 60
_RESTARTS, _FOR_EVER = 2, -1
# Where the resident run has the files that Ray Train asks for; they are small and stay few.
_RESIDENT = "trainers"


def run_on_ray(store_uri: str, job: str, attempt: int, ranks: int, gpus_per_rank: float) -> None:
    """Run one attempt on the cluster that this process belongs to; raises what the ranks raised."""
    told = {"store_uri": store_uri, "job": job, "attempt": attempt}
    # One run name per attempt: Ray resumes silently under a name that it has seen.
    files = _files(store_uri, f"{run_prefix(job, attempt)}/ray", submission_id(job, attempt))
    run = RunConfig(failure_config=FailureConfig(max_failures=_RESTARTS), **files)
    _trainer(_train_on_rank, told, run, ranks, gpus_per_rank).fit()


def run_resident_group(store_uri: str, ranks: int, gpus_per_rank: float) -> None:
    """Ranks that serve attempts until the desk retires them; raises where Ray gives up."""
    files = _files(store_uri, _RESIDENT, f"resident-{uuid.uuid4().hex[:12]}")
    run = RunConfig(failure_config=FailureConfig(max_failures=_FOR_EVER), **files)
    _trainer(_serve_on_rank, {}, run, ranks, gpus_per_rank).fit()


def _trainer(
    on_rank: Callable[[dict[str, Any]], None],
    told: dict[str, Any],
    run: RunConfig,
    ranks: int,
    gpus_per_rank: float,
) -> TorchTrainer:
    resources = {"CPU": 1.0, "GPU": gpus_per_rank} if gpus_per_rank else {"CPU": 1.0}
    return TorchTrainer(
        on_rank,
        train_loop_config=told,
        torch_config=TorchConfig(
            # Moments are summed in float64 on the host, also where gradients travel by NCCL.
            backend="cpu:gloo,cuda:nccl" if gpus_per_rank else "gloo",
            timeout_s=_PEER_TIMEOUT_SECONDS,
        ),
        scaling_config=ScalingConfig(
            num_workers=ranks, use_gpu=gpus_per_rank > 0, resources_per_worker=resources
        ),
        run_config=run,
    )


def _train_on_rank(config: dict[str, Any]) -> None:
    train_dataset(device=ray.train.torch.get_device(), **config)


def _serve_on_rank(_: dict[str, Any]) -> None:
    serve_attempts(ray.train.torch.get_device())


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
