"""What each rank of the resident group does: the next attempt, and the next, until told to end."""

import os
import threading
import traceback
from typing import Any

import ray
import torch

from cmcl.contract.errors import HOPELESS
from workers.train.distributed import World, meet, world
from workers.train.job import train_dataset
from workers.train.warm.desk import Assignment, Retire
from workers.train.warm.memory import give_back
from workers.train.warm.resident import NAME, NAMESPACE


def serve_attempts(device: torch.device) -> None:
    """Work through the desk's line.

    An error ends the whole group, and Ray starts a new one: ranks that no longer stand at the same
    line of the same attempt must never meet in a collective.
    """
    resident, here = ray.get_actor(NAME, NAMESPACE), world()
    _import_the_rest()
    _tell_of_the_group(resident, here)
    done = 0
    while True:
        found: Any = ray.get(resident.next.remote(done))
        if isinstance(found, Retire):
            return
        if isinstance(found, Assignment):
            _work_on(found, resident, here, device)
            done = found.number


def _tell_of_the_group(resident: Any, here: World) -> None:
    """It has started once all its ranks are there, and none asks for work before that is told."""
    meet(here)
    if here.leads:
        ray.get(resident.group_started.remote())
        threading.Thread(target=_end_when_abandoned, args=[resident], daemon=True).start()
    meet(here)


def _work_on(assignment: Assignment, resident: Any, here: World, device: torch.device) -> None:
    attempt = assignment.attempt
    try:
        train_dataset(attempt.store_uri, attempt.job, attempt.attempt, device)
    except HOPELESS as error:
        ray.get(resident.refused.remote(assignment.number, str(error)))
        raise
    except BaseException:
        ray.get(resident.stumbled.remote(assignment.number, traceback.format_exc()))
        raise
    else:
        if here.leads:
            ray.get(resident.finished.remote(assignment.number))
    finally:
        # Whoever waits for the attempt does not wait for this.
        give_back(device)


def _import_the_rest() -> None:
    """The first optimizer imports torch._dynamo: a second that no attempt should wait for."""
    torch.optim.AdamW([torch.zeros(1)])


def _end_when_abandoned(resident: Any) -> None:
    """Training knows no way to be asked to stop, and it may be waiting for a peer."""
    while not ray.get(resident.is_abandoned.remote()):
        pass
    os._exit(1)
