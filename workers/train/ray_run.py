"""The same job as a Ray Train run: N ranks under DDP, restarted by Ray when one of them dies."""

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

# A rank whose peer died waits this long for it before Ray restarts the group.
_PEER_TIMEOUT_SECONDS = 60
_RESTARTS = 2


def run_on_ray(store_uri: str, job: str, attempt: int, ranks: int, gpus_per_rank: float) -> None:
    """Run one attempt on the cluster that this process belongs to; raises what the ranks raised."""
    resources = {"CPU": 1.0, "GPU": gpus_per_rank} if gpus_per_rank else {"CPU": 1.0}
    trainer = TorchTrainer(
        _train_on_rank,
        train_loop_config={"store_uri": store_uri, "job": job, "attempt": attempt},
        torch_config=TorchConfig(
            # Moments are summed in float64 on the host, also where gradients travel by NCCL.
            backend="cpu:gloo,cuda:nccl" if gpus_per_rank else "gloo",
            timeout_s=_PEER_TIMEOUT_SECONDS,
        ),
        scaling_config=ScalingConfig(
            num_workers=ranks, use_gpu=gpus_per_rank > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            # One run name per attempt: Ray resumes silently under a name that it has seen.
            name=submission_id(job, attempt),
            failure_config=FailureConfig(max_failures=_RESTARTS),
            **_run_storage(store_uri, job, attempt),
        ),
    )
    trainer.fit()


def _train_on_rank(config: dict[str, Any]) -> None:
    train_dataset(device=ray.train.torch.get_device(), **config)


def _run_storage(store_uri: str, job: str, attempt: int) -> dict[str, Any]:
    """Where Ray Train keeps its own files: beside the attempt, in the same store."""
    store, path = open_store(store_uri), f"{run_prefix(job, attempt)}/ray"
    if not isinstance(store, S3Store):
        return {"storage_path": str(Path(urlsplit(store.uri).path) / path)}
    filesystem = pyarrow.fs.S3FileSystem(endpoint_override=store.endpoint_url, region=store.region)
    return {
        "storage_filesystem": filesystem,
        "storage_path": f"{store.bucket}/{store.prefix}{path}",
    }
