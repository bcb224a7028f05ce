"""Idempotency keys: a POST runs once, and its response is stored and replayed for the same key.

Most requests are one transaction: a second request with the same key waits for it and replays its response.
A long request, which reaches beyond the database, claims its key first; its work can be repeated.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import Connection

from service.api.dependencies import IdempotencyKey
from service.context import Context
from service.core.errors import Conflict, FieldProblem, Unprocessable
from service.database.queries import idempotency
from service.database.queries.idempotency import ScopedKey
from service.database.rows import KeyClaim, ResponseRow


@dataclass(frozen=True)
class Outcome:
    """A response, and whether it is a replay."""

    row: ResponseRow
    is_replay: bool = False

    def with_more(self, **more: object) -> "Outcome":
        """Add fields that are sent and not stored."""
        return replace(self, row=replace(self.row, body={**self.row.body, **more}))

    def response(self) -> JSONResponse:
        """The HTTP response."""
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


def respond_long(
    context: Context, key: IdempotencyKey | None, work: Callable[[], ResponseRow]
) -> JSONResponse:
    """`respond` for work beyond one transaction.

    `work` must be repeatable and must refuse to run twice at a time. A request that finds its key claimed runs
    it as well: the process that claimed the key may have died after the work and before it stored the response.
    """
    if key is None:
        return Outcome(work()).response()
    mine = KeyClaim(key.fingerprint, context.clock())
    found = context.database.settle(lambda connection: _claim(connection, key, mine))
    if isinstance(found, Outcome):
        return found.response()
    try:
        fresh = work()
    except Exception:
        if found is mine:
            with context.database.write() as connection:
                idempotency.release(connection, _scoped(key), mine)
        raise
    with context.database.write() as connection:
        idempotency.fulfil(connection, _scoped(key), found, fresh)
    return Outcome(fresh).response()


def response_row(
    key: IdempotencyKey | None, status: int, body: BaseModel, location: str | None = None
) -> ResponseRow:
    """A response in the form in which it is sent and stored."""
    fingerprint = key.fingerprint if key is not None else ""
    return ResponseRow(fingerprint, status, location, body.model_dump(mode="json"))


def _claim(connection: Connection, key: IdempotencyKey, mine: KeyClaim) -> Outcome | KeyClaim:
    """Return the stored response, or the claim without one: this request's or an earlier one's."""
    known = idempotency.find(connection, _scoped(key))
    if known is None:
        idempotency.claim(connection, _scoped(key), mine)
        return mine
    if isinstance(known, KeyClaim):
        _check_same_body(key, known)
        return known
    return _replay(key, known)


def _replay(key: IdempotencyKey, known: ResponseRow | KeyClaim) -> Outcome:
    _check_same_body(key, known)
    if isinstance(known, KeyClaim):
        message = "a request with this key is still being processed; retry in a moment"
        raise Conflict(message, FieldProblem("Idempotency-Key", message, key.key))
    return Outcome(known, is_replay=True)


def _check_same_body(key: IdempotencyKey, known: ResponseRow | KeyClaim) -> None:
    if key.fingerprint != known.fingerprint:
        message = "this key was used with another body; a new request needs a new key"
        raise Unprocessable(message, FieldProblem("Idempotency-Key", message, key.key))


def _scoped(key: IdempotencyKey) -> ScopedKey:
    return (key.owner, key.key, key.route)
