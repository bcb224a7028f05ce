"""Idempotency keys: a POST runs once, and its response is stored and replayed for the same key.

A request is one transaction: a second request with the same key waits for it and replays its response.
"""

from collections.abc import Callable, Mapping

from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import Connection, insert, select

from service.api.dependencies import IdempotencyKey
from service.context import Context
from service.core.errors import FieldProblem, Unprocessable
from service.database.engine import one
from service.database.rows import ResponseRow
from service.database.tables import responses

_STORED = ("fingerprint", "status", "location", "body")


def respond(
    context: Context,
    key: IdempotencyKey | None,
    effect: Callable[[Connection], ResponseRow],
    secret: Mapping[str, str] = {},
) -> JSONResponse:
    """Run `effect` in a transaction and return its response, or replay the one stored for the key.

    `secret`: fields of the first response alone, which are not stored. Rejections are not stored: nothing was changed, so
    the request may be sent again.
    """
    row, is_replay = _run_once(context, key, effect)
    headers = {"Location": row.location} if row.location else {}
    if is_replay:
        headers["Idempotency-Replayed"] = "true"
    elif secret:
        headers["Cache-Control"] = "no-store"
    return JSONResponse(row.body if is_replay else {**row.body, **secret}, row.status, headers)


def _run_once(
    context: Context, key: IdempotencyKey | None, effect: Callable[[Connection], ResponseRow]
) -> tuple[ResponseRow, bool]:
    """The response, and whether it is a replay."""
    if key is None:
        return context.database.settle(effect), False
    scoped = {"owner": key.owner, "key": key.key, "route": key.route}

    def once(connection: Connection) -> tuple[ResponseRow, bool]:
        known = find_response(connection, scoped)
        if known is None:
            fresh = effect(connection)
            # Raises WriteConflict if another request stored one first: then that is replayed.
            row = {**scoped, **vars(fresh), "created_at": context.clock()}
            connection.execute(insert(responses).values(row))
            return fresh, False
        if key.fingerprint != known.fingerprint:
            message = "this key was used with another body; a new request needs a new key"
            raise Unprocessable(message, FieldProblem("Idempotency-Key", message, key.key))
        return known, True

    return context.database.settle(once)


def find_response(connection: Connection, scoped: Mapping[str, str]) -> ResponseRow | None:
    """The response stored for a key; `scoped` has its owner, key and route."""
    query = select(responses).where(*(responses.c[name] == each for name, each in scoped.items()))
    return one(connection, query, lambda row: ResponseRow(**{each: row[each] for each in _STORED}))


def response_row(
    key: IdempotencyKey | None, status: int, body: BaseModel, location: str | None = None
) -> ResponseRow:
    """A response in the form in which it is sent and stored."""
    fingerprint = key.fingerprint if key is not None else ""
    return ResponseRow(fingerprint, status, location, body.model_dump(mode="json"))
