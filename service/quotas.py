"""Quotas of one owner: the number of rows that it may create, and the size of a version.

On PostgreSQL, concurrent requests may slightly exceed a limit: exact limits would need a lock that all
requests of an owner share. Rows created within the last hour count even after they are deleted, so that
creating and deleting in turn is limited too.
"""

from datetime import datetime, timedelta

from sqlalchemy import Connection

from cmcl.contract.model import ModelSpec
from service.database.queries import keys, models, webhooks
from service.errors import Conflict, FieldProblem, Unprocessable
from service.principal import Principal

_COUNTED_AFTER_DELETION = timedelta(hours=1)


def check_keys(
    connection: Connection, owner: str, limit: int, principal: Principal, now: datetime
) -> None:
    """Check before a key is created. Raises Conflict; the operator is not limited."""
    if principal.owner is not None:
        found = keys.count(connection, owner, now, now - _COUNTED_AFTER_DELETION)
        _check(found, limit, owner, "keys that are valid or were made within the last hour")


def check_models(
    connection: Connection, owner: str, limit: int, principal: Principal, now: datetime
) -> None:
    """Check before a model or branch is created. Raises Conflict; the operator is not limited."""
    if principal.owner is not None:
        found = models.count(connection, owner, now - _COUNTED_AFTER_DELETION)
        _check(found, limit, owner, "models, with deleted ones that were made within the last hour")


def check_webhooks(connection: Connection, owner: str, limit: int) -> None:
    """Check before a webhook is created, by the operator too: each event is stored for each webhook."""
    _check(webhooks.count(connection, owner), limit, owner, "webhooks")


def check_heads(spec: ModelSpec, limit: int, field: str) -> None:
    """Check that replicas can hold versions of this specification. Raises Unprocessable."""
    message = heads_problem(spec.heads_bytes, limit)
    if message is not None:
        raise Unprocessable(
            message,
            FieldProblem(
                field, message, {"width": spec.width, "modalities": dict(spec.modalities)}
            ),
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


def _check(found: int, limit: int, owner: str, what: str) -> None:
    if found >= limit:
        message = f"owner {owner!r} has {found} {what}; permitted are {limit}. Remove some, or ask "
        message += "the operator for a larger limit"
        raise Conflict(message, FieldProblem("owner", message, owner))
