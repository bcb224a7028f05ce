"""What the job of an attempt does with the resident group. Imports Ray alone, to be quick."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import workers
from workers.train.warm.desk import Answer, Attempt
from workers.train.warm.resident import NAME, NAMESPACE, Resident, Setup

_GOODBYE_SECONDS = 2.0
# What the results may depend on beside our own code.
_PACKAGES = ("cmcl", "torch", "ray", "numpy")


def learn_warm(attempt: Attempt, setup: Setup) -> Answer | None:
    """The final answer of the resident group; None where the attempt needs ranks of its own.

    That is so if the group died, is made of something else, or is busy while the cluster has room.
    """
    resident: Any = None
    answer: Answer | None = None
    try:
        resident = resident_here(attempt.store_uri, setup)
        answer = _wait(resident, attempt, setup)
    except RayError as error:
        print(f"the resident ranks cannot be used: {error}", flush=True)
        return None
    finally:
        # Also when this process is told to end.
        if resident is not None and (answer is None or not answer.is_final):
            _withdraw(resident, attempt)
    return None if answer is None or answer.state == "elsewhere" else answer


def setup_here(ranks: int, gpus_per_rank: float) -> Setup:
    """A group that runs the code that is installed here."""
    return Setup(_code(), ranks, gpus_per_rank)


def resident_here(store_uri: str, setup: Setup) -> Any:
    """The actor of this cluster; started where there is none, without waiting for its ranks."""
    try:
        return ray.get_actor(NAME, NAMESPACE)
    except ValueError:
        pass
    here = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(Resident)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            # Drivers run on the head node, which outlives the others.
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
        )
        .remote(setup, store_uri)
    )


def _wait(resident: Any, attempt: Attempt, setup: Setup) -> Answer | None:
    while True:
        answer: Answer = ray.get(resident.ask.remote(attempt, setup))
        if answer.is_final:
            return answer
        if answer.state == "waiting" and _has_room(setup):
            return None


def _withdraw(resident: Any, attempt: Attempt) -> None:
    try:
        ray.get(resident.withdraw.remote(attempt), timeout=_GOODBYE_SECONDS)
    except Exception as error:  # noqa: BLE001
        # It notices by itself after some time; nothing may keep this process from ending.
        print(f"the resident ranks were not told: {error}", flush=True)


def _has_room(setup: Setup) -> bool:
    """Whether another group would fit beside the resident one."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    fits = free.get("CPU", 0.0) >= setup.ranks
    return fits and free.get("GPU", 0.0) >= setup.ranks * setup.gpus_per_rank


def _code() -> str:
    """A digest of the workers' sources and of the packages below them."""
    digest = hashlib.blake2b(digest_size=16)
    root = Path(workers.__path__[0])
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    for package in _PACKAGES:
        digest.update(f"{package}={version(package)}".encode())
    return digest.hexdigest()
