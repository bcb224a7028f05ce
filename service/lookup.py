"""Looks up what a request names. Things of other owners and deleted ones are not found."""

from sqlalchemy import Connection

from service.database.queries import datasets, jobs, models, versions
from service.database.rows import DatasetRecord, JobRecord, ModelRecord, VersionRecord
from service.errors import FieldProblem, NotFound
from service.principal import Principal


def get_model(connection: Connection, name: str, principal: Principal) -> ModelRecord:
    """The model of that name. Raises NotFound."""
    model = models.find(connection, name)
    if model is None or model.deleted_at is not None or not principal.sees(model.owner):
        message = f"there is no model {name!r}"
        raise NotFound(message, FieldProblem("model", message, name))
    return model


def hold_model(connection: Connection, name: str, principal: Principal) -> ModelRecord:
    """The same, locked against deletion until the transaction ends, for creating a job of it.

    Take it before any lock on its datasets or jobs: this is the lock order.
    """
    models.hold(connection, name)
    return get_model(connection, name, principal)


def get_dataset(connection: Connection, dataset: str, principal: Principal) -> DatasetRecord:
    """The dataset of that id. Raises NotFound."""
    found = datasets.find(connection, dataset)
    if found is None or found.deleted_at is not None or not principal.sees(found.owner):
        raise NotFound(f"there is no dataset {dataset!r}")
    return found


def get_job(connection: Connection, job: str, principal: Principal) -> JobRecord:
    """The job of that id. Raises NotFound."""
    found = jobs.find(connection, job)
    if found is None or not principal.sees(found.owner):
        raise NotFound(f"there is no job {job!r}")
    return found


def get_version(
    connection: Connection, model: str, number: int, principal: Principal
) -> VersionRecord:
    """One version of a model. Raises NotFound."""
    current = get_model(connection, model, principal)
    found = versions.find(connection, model, number)
    if found is None:
        permitted = f"1 to {current.head}" if current.head else "none yet"
        message = f"model {model!r} has no version {number}; permitted: {permitted}"
        raise NotFound(message, FieldProblem("version", message, number))
    return found
