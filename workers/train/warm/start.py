"""Finding or starting the resident, and asking the cluster: the part of a job that needs Ray."""

from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workers.train.warm.resident import NAME, NAMESPACE, Resident
from workers.train.warm.wire import Setup, socket_path


def open_resident(store_uri: str, setup: Setup, idle_seconds: float) -> Path:
    """The socket of this cluster's resident, which is started where there is none.

    Its ranks may take long to be there. Raises ConnectionError where it died.
    """
    _join_cluster()
    resident: Any = (
        ray.remote(Resident)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            # Beside the drivers of jobs: they come to its socket.
            scheduling_strategy=NodeAffinitySchedulingStrategy(_node(), soft=False),
        )
        .remote(setup, store_uri, idle_seconds)
    )
    try:
        ray.get(resident.open.remote())
    except RayError as error:
        raise ConnectionError(str(error)) from error
    return socket_path(ray.get_runtime_context().gcs_address)


def free_resources() -> dict[str, float]:
    """What no task of the cluster holds, by name."""
    _join_cluster()
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return free


def _join_cluster() -> None:
    if not ray.is_initialized():
        ray.init()


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())
