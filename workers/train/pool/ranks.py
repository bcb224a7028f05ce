"""The loop of each rank of the pool: it trains one attempt after another."""

import gc
import os
import threading
import traceback
from typing import Any

import ray
import torch

from cmcl.contract.errors import NON_RETRYABLE
from cmcl.memory import release_memory
from workers.train.distributed import World, barrier, world
from workers.train.job import train_dataset
from workers.train.pool.queue import Assignment, Retire


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
