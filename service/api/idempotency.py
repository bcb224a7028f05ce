"""Idempotency keys: a POST runs once, and its response is stored and replayed for the same key.

A request is one transaction: a second request with the same key waits for it and replays its response.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import Connection

from service.api.dependencies import IdempotencyKey
from service.context import Context
from service.core.errors import FieldProblem, Unprocessable
from service.database.queries import idempotency
from service.database.queries.idempotency import ScopedKey
from service.database.rows import ResponseRow


@dataclass(frozen=True)
class Outcome:
    """A response, and whether it is a replay."""

    row: ResponseRow
    is_replay: bool = False

    def with_more(self, **more: object) -> "Outcome":
        """Add fields that are sent and not stored."""
        return replace(self, row=replace(self.row, body={**self.row.body, **more}))

    def response(self) -> JSONResponse:
        headers = {"Location": self.row.location} if self.row.location else {}
        if self.is_replay:
            headers["Idempotency-Replayed"] = "true"
        return JSONResponse(self.row.body, self.row.status, headers=headers)


def respond(
    context: Context, key: IdempotencyKey | None, effect: Callable[[Connection], ResponseRow]
) -> JSONResponse:
    """Run `effect` in a transaction and return its response, or replay the one stored for the key.

    Refusals are not stored: nothing was changed, so the request may be sent again.
    """
    return run_once(context, key, effect).response()


def run_once(
    context: Context, key: IdempotencyKey | None, effect: Callable[[Connection], ResponseRow]
) -> Outcome:
    """`respond` for a response to which the caller adds fields that are not stored."""
    if key is None:
        return Outcome(context.database.settle(effect))

    def once(connection: Connection) -> Outcome:
        known = idempotency.find(connection, _scoped(key))
        if known is not None:
            return _replay(key, known)
        fresh = effect(connection)
        idempotency.save(connection, _scoped(key), fresh, context.clock())
        return Outcome(fresh)

    return context.database.settle(once)


def response_row(
    key: IdempotencyKey | None, status: int, body: BaseModel, location: str | None = None
) -> ResponseRow:
    """A response in the form in which it is sent and stored."""
    fingerprint = key.fingerprint if key is not None else ""
    return ResponseRow(fingerprint, status, location, body.model_dump(mode="json"))


def _replay(key: IdempotencyKey, known: ResponseRow) -> Outcome:
    if key.fingerprint != known.fingerprint:
        message = "this key was used with another body; a new request needs a new key"
        raise Unprocessable(message, FieldProblem("Idempotency-Key", message, key.key))
    return Outcome(known, is_replay=True)


def _scoped(key: IdempotencyKey) -> ScopedKey:
    return (key.owner, key.key, key.route)
