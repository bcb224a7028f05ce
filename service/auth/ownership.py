"""What an owner sees and may create. Things of other owners and deleted ones are not found; quotas limit new ones.

On PostgreSQL, concurrent requests may slightly exceed a quota: exact limits would need a lock that all
requests of an owner share. Rows created within the last hour count even after they are deleted, so that
creating and deleting in turn is limited too.
"""

from datetime import datetime, timedelta

from sqlalchemy import Connection

from cmcl.contract.model import ModelSpec
from service.core.errors import Conflict, FieldProblem, NotFound, Unprocessable
from service.core.principal import Principal
from service.database.queries import datasets, jobs, keys, models, uploads, versions, webhooks
from service.database.rows import DatasetRow, JobRow, ModelRow, VersionRow

COUNTED_AFTER_DELETION = timedelta(hours=1)
# Valid keys and those made within the last hour: enough for rotation, and a list that replicas read often stays small.
MOST_KEYS = 100
# Each event is stored once for each webhook.
MOST_WEBHOOKS = 50
# From their creation until they are removed; bounds the rows of uploads whose files never arrived.
MOST_UPLOADS = 10_000


def get_model(connection: Connection, name: str, principal: Principal) -> ModelRow:
    """The model of that name. Raises NotFound."""
    model = models.find(connection, name)
    if model is None or model.deleted_at is not None or not principal.sees(model.owner):
        message = f"there is no model {name!r}"
        raise NotFound(message, FieldProblem("model", message, name))
    return model


def lock_model_shared(connection: Connection, name: str, principal: Principal) -> ModelRow:
    """The same, locked against deletion until the transaction ends, for creating a job of it.

    Take it before any lock on its datasets or jobs: this is the lock order.
    """
    models.lock_shared(connection, name)
    return get_model(connection, name, principal)


def get_dataset(connection: Connection, dataset: str, principal: Principal) -> DatasetRow:
    """The dataset of that id. Raises NotFound."""
    found = datasets.find(connection, dataset)
    if found is None or found.deleted_at is not None or not principal.sees(found.owner):
        raise NotFound(f"there is no dataset {dataset!r}")
    return found


def get_job(connection: Connection, job: str, principal: Principal) -> JobRow:
    """The job of that id. Raises NotFound."""
    found = jobs.find(connection, job)
    if found is None or not principal.sees(found.owner):
        raise NotFound(f"there is no job {job!r}")
    return found


def get_version(
    connection: Connection, model: str, number: int, principal: Principal
) -> VersionRow:
    """One version of a model. Raises NotFound."""
    current = get_model(connection, model, principal)
    found = versions.find(connection, model, number)
    if found is None:
        permitted = f"1 to {current.head}" if current.head else "none yet"
        message = f"model {model!r} has no version {number}; permitted: {permitted}"
        raise NotFound(message, FieldProblem("version", message, number))
    return found


def check_keys(connection: Connection, owner: str, principal: Principal, now: datetime) -> None:
    """Check before a key is created. Raises Conflict; the operator is not limited."""
    if principal.owner is not None:
        found = keys.count(connection, owner, now, now - COUNTED_AFTER_DELETION)
        what = "keys that are valid or were made within the last hour"
        _check_room(found, MOST_KEYS, owner, what)


def check_models(
    connection: Connection, owner: str, limit: int | None, principal: Principal, now: datetime
) -> None:
    """Check before a model or branch is created. Raises Conflict; the operator is not limited."""
    if principal.owner is not None and limit is not None:
        found = models.count(connection, owner, now - COUNTED_AFTER_DELETION)
        what = "models, with deleted ones that were made within the last hour"
        _check_room(found, limit, owner, what, "CMCL_MODELS_PER_OWNER")


def check_webhooks(connection: Connection, owner: str) -> None:
    """Check before a webhook is created, by the operator too: each event is stored for each webhook."""
    _check_room(webhooks.count(connection, owner), MOST_WEBHOOKS, owner, "webhooks")


def check_uploads(connection: Connection, owner: str, size: int, limit: int | None) -> None:
    """Check before an upload of `size` bytes is created. Raises Conflict."""
    number, used = uploads.used(connection, owner)
    _check_room(number, MOST_UPLOADS, owner, "uploads that are not removed yet")
    if limit is not None and used + size > limit:
        message = (
            f"your uploads use {used} bytes and would use {used + size}; permitted are {limit}: delete some, wait "
            "until their datasets are learned, or ask the operator for a larger limit "
            "(CMCL_UPLOAD_BYTES_PER_OWNER_MAX)"
        )
        raise Conflict(message, FieldProblem("bytes", message, size))


def _check_room(
    found: int, limit: int, owner: str, what: str, raised_by: str | None = None
) -> None:
    """Raises Conflict unless there is room for one more. `what`: what is counted, in words."""
    if found >= limit:
        message = f"owner {owner!r} has {found} {what}; permitted are {limit}. Remove some"
        if raised_by is not None:
            message += f", or ask the operator for a larger limit ({raised_by})"
        raise Conflict(message, FieldProblem("owner", message, owner))


def check_heads(spec: ModelSpec, limit: int, field: str) -> None:
    """Check that replicas can hold versions of this specification. Raises Unprocessable."""
    message = heads_problem(spec.heads_bytes, limit)
    if message is not None:
        raise Unprocessable(
            message,
            FieldProblem(field, message, {"width": spec.width, "modalities": dict(spec.widths)}),
        )


def heads_problem(size: int, limit: int) -> str | None:
    """Why heads of this size are not permitted, or None."""
    if size <= limit:
        return None
    return (
        f"the heads of a version take {size} bytes ({size / 2**20:.0f} MiB) in each replica of the "
        f"endpoint; permitted are {limit} ({limit / 2**20:.0f} MiB, CMCL_HEADS_BYTES_MAX). Choose a "
        "smaller width, narrower features or fewer modalities, or ask the operator for a larger limit"
    )
