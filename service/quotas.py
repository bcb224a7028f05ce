"""How much one owner may have: limits of rows that a tenant makes as often as it likes, and of the size
of a version.

Limits are soft by what is made at the same moment on PostgreSQL: to be exact, every request would
have to wait for a lock that all of its owner's requests share. What was made within the last hour
counts even if it is gone, so that making and removing in turn has the same limit.
"""

from datetime import datetime, timedelta

from sqlalchemy import Connection

from cmcl.contract.model import ModelSpec
from service.database.queries import keys, models, webhooks
from service.errors import Conflict, FieldProblem, Unprocessable
from service.principal import Principal

_COUNTS_ALTHOUGH_GONE = timedelta(hours=1)


def check_keys(
    connection: Connection, owner: str, limit: int, principal: Principal, now: datetime
) -> None:
    """Before a key is made. Raises Conflict; the operator has no limit."""
    if principal.owner is not None:
        there = keys.count(connection, owner, now, now - _COUNTS_ALTHOUGH_GONE)
        _check(there, limit, owner, "keys that are valid or were made within the last hour")


def check_models(
    connection: Connection, owner: str, limit: int, principal: Principal, now: datetime
) -> None:
    """Before a model is made, by itself or as a branch. Raises Conflict; the operator has no limit."""
    if principal.owner is not None:
        there = models.count(connection, owner, now - _COUNTS_ALTHOUGH_GONE)
        _check(there, limit, owner, "models, with deleted ones that were made within the last hour")


def check_webhooks(connection: Connection, owner: str, limit: int) -> None:
    """Before a webhook is made, also by the operator: each event is written for all of them."""
    _check(webhooks.count(connection, owner), limit, owner, "webhooks")


def check_heads(spec: ModelSpec, limit: int, field: str) -> None:
    """Whether replicas can hold versions of that specification. Raises Unprocessable for `field`."""
    message = heads_problem(spec.heads_bytes, limit)
    if message is not None:
        raise Unprocessable(
            message,
            FieldProblem(
                field, message, {"width": spec.width, "modalities": dict(spec.modalities)}
            ),
        )


def heads_problem(size: int, limit: int) -> str | None:
    """Why heads of so many bytes are not permitted; None where they are."""
    if size <= limit:
        return None
    return (
        f"the heads of a version take {size} bytes ({size / 2**20:.0f} MiB) in each replica of the "
        f"endpoint; permitted are {limit} ({limit / 2**20:.0f} MiB, CMCL_HEADS_BYTES_MAX). Choose a "
        "smaller width, narrower features or fewer modalities, or ask the operator for a larger limit"
    )


def _check(there: int, limit: int, owner: str, what: str) -> None:
    if there >= limit:
        message = f"owner {owner!r} has {there} {what}; permitted are {limit}. Remove some, or ask "
        message += "the operator for a larger limit"
        raise Conflict(message, FieldProblem("owner", message, owner))
