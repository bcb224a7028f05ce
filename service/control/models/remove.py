"""What users delete. Rows stay, so that history stays true; files go later, with the sweeper."""

from datetime import datetime

from sqlalchemy import Connection

from service.control.lookup import get_dataset, get_model, get_version
from service.control.models.trials import end as end_trial
from service.control.models.wish import Wish
from service.database.queries import datasets, events, jobs, models, trials, versions
from service.database.rows import Happening
from service.errors import Conflict
from service.principal import Principal
from service.states import JobState


def delete_model(connection: Connection, name: str, principal: Principal, now: datetime) -> None:
    """Raises NotFound, and Conflict while a job of the model has not ended."""
    models.lock(connection, name)
    model = get_model(connection, name, principal)
    if jobs.has_open(connection, name):
        raise Conflict(f"a job of model {name!r} has not ended; cancel it first")
    trial = trials.running(connection, name)
    if trial is not None:
        end_trial(
            connection, model, trial, "taken_back", Wish(principal, "the model was deleted", now)
        )
    models.set_deleted(connection, name, now)
    told = {"actor": principal.name}
    happening = Happening(kind="model.deleted", owner=model.owner, model=name, data=told)
    events.tell(connection, happening, now)


def retire_version(
    connection: Connection, name: str, number: int, principal: Principal, now: datetime
) -> None:
    """Raises NotFound, and Conflict for the newest version, and those that answer or are tried."""
    models.lock(connection, name)
    model = get_model(connection, name, principal)
    version = get_version(connection, name, number, principal)
    if number == model.head:
        raise Conflict(f"version {number} is the newest of {name!r}: the next one grows from it")
    if number == model.live_version:
        raise Conflict(f"version {number} of {name!r} answers; promote another one first")
    trial = trials.running(connection, name)
    if trial is not None and trial.version == number:
        raise Conflict(f"version {number} of {name!r} is on trial; take it back first")
    if version.retired_at is not None:
        return
    versions.set_retired(connection, name, number, now)
    models.revise(connection, name, now)
    told = {"actor": principal.name}
    happening = Happening(
        kind="version.retired", owner=model.owner, model=name, version=number, data=told
    )
    events.tell(connection, happening, now)


def delete_dataset(
    connection: Connection, dataset: str, principal: Principal, now: datetime
) -> None:
    """Raises NotFound, and Conflict while it is being learned, or once it was.

    What a version has learned stays in it, with its moments; that is what protects it.
    """
    datasets.lock(connection, dataset)
    found = get_dataset(connection, dataset, principal)
    job = jobs.of_dataset(connection, dataset)
    if job is not None and job.finished_at is None:
        raise Conflict(f"job {job.id} of this dataset is {job.state}; cancel it first")
    if job is not None and job.state == JobState.PUBLISHED:
        raise Conflict(
            f"version {job.version} of {job.model!r} has learned this dataset, "
            "and later ones protect it; it cannot be taken out"
        )
    datasets.set_deleted(connection, dataset, now)
    happening = Happening(
        kind="dataset.deleted",
        owner=found.owner,
        model=found.model,
        dataset=dataset,
        data={"actor": principal.name},
    )
    events.tell(connection, happening, now)
