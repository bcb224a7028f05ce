"""Finding or starting the resident, and asking the cluster: the part of a job that needs Ray."""

from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workers.train.warm.connection import LOOK_SECONDS
from workers.train.warm.desk import Answer
from workers.train.warm.resident import NAME, NAMESPACE, Resident
from workers.train.warm.wire import (
    Request,
    Setup,
    answer_from_line,
    answer_to_line,
    socket_path,
)


class OverRay:
    """To a resident on another node: calls that come back with news, or after a while."""

    def __init__(self, resident: Any, request: Request) -> None:
        self._resident, self._request_line = resident, request.to_line()
        self._told_line = answer_to_line(Answer("waiting"))
        self._call: Any = None

    def hear(self) -> Answer:
        """See `Connection`."""
        if self._call is None:
            self._call = self._resident.ask.remote(self._request_line, self._told_line)
        try:
            self._told_line = ray.get(self._call, timeout=LOOK_SECONDS)
        except GetTimeoutError as error:
            raise TimeoutError("no news yet") from error
        except RayError as error:
            raise ConnectionError(str(error)) from error
        self._call = None
        return answer_from_line(self._told_line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resident.leave.remote(self._request_line)


def open_resident(store_uri: str, setup: Setup, idle_seconds: float) -> tuple[Any, Path]:
    """This cluster's resident, which is started where there is none, and its socket on its own node.

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
            # Beside the drivers of jobs, which come to its socket then.
            scheduling_strategy=NodeAffinitySchedulingStrategy(_node(), soft=False),
        )
        .remote(setup, store_uri, idle_seconds)
    )
    try:
        ray.get(resident.open.remote())
    except RayError as error:
        raise ConnectionError(str(error)) from error
    return resident, socket_path(ray.get_runtime_context().gcs_address)


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
