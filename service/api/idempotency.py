"""Answers to POSTs: done once, remembered, and repeated for the same key.

Most of them are one transaction: a second request with the same key waits for it, and gets its
answer. Work that takes long, and reaches beyond the database, claims its key first, and can be repeated.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import Connection

from service.api.dependencies import IdempotencyKey
from service.context import Context
from service.database.queries import idempotency
from service.database.queries.idempotency import Place
from service.database.rows import KeyClaim, ResponseRecord
from service.errors import Conflict, FieldProblem, Unprocessable


@dataclass(frozen=True)
class Answered:
    """An answer, and whether it was given before."""

    record: ResponseRecord
    is_replay: bool = False

    def with_more(self, **more: object) -> "Answered":
        """With something that is told and not kept."""
        return replace(self, record=replace(self.record, body={**self.record.body, **more}))

    def response(self) -> JSONResponse:
        """As it is sent."""
        headers = {"Location": self.record.location} if self.record.location else {}
        if self.is_replay:
            headers["Idempotency-Replayed"] = "true"
        return JSONResponse(self.record.body, self.record.status, headers=headers)


def answer(
    context: Context, key: IdempotencyKey | None, effect: Callable[[Connection], ResponseRecord]
) -> JSONResponse:
    """What `effect` answers; what it answered before, if the key was used before.

    Refusals are not remembered: nothing was done, so asking again is harmless.
    """
    return answered(context, key, effect).response()


def answered(
    context: Context, key: IdempotencyKey | None, effect: Callable[[Connection], ResponseRecord]
) -> Answered:
    """The same, for an answer that gets something more before it is sent, and not remembered."""
    if key is None:
        return Answered(context.database.settle(effect))

    def once(connection: Connection) -> Answered:
        known = idempotency.find(connection, _place(key))
        if known is not None:
            return _again(key, known)
        fresh = effect(connection)
        idempotency.remember(connection, _place(key), fresh, context.clock())
        return Answered(fresh)

    return context.database.settle(once)


def answer_long(
    context: Context, key: IdempotencyKey | None, work: Callable[[], ResponseRecord]
) -> JSONResponse:
    """The same for work beyond one transaction.

    `work` can be repeated, answers the same once it was done, and refuses by itself while somebody is
    at it. So a request that finds its key claimed does it as well: whoever claimed it may have died
    when the work was done, and not yet answered.
    """
    if key is None:
        return Answered(work()).response()
    mine = KeyClaim(key.fingerprint, context.clock())
    found = context.database.settle(lambda connection: _claim(connection, key, mine))
    if isinstance(found, Answered):
        return found.response()
    try:
        fresh = work()
    except Exception:
        if found is mine:
            with context.database.write() as connection:
                idempotency.release(connection, _place(key), mine)
        raise
    with context.database.write() as connection:
        idempotency.fulfil(connection, _place(key), found, fresh)
    return Answered(fresh).response()


def record(
    key: IdempotencyKey | None, status: int, body: BaseModel, location: str | None = None
) -> ResponseRecord:
    """An answer in the form in which it is sent and kept."""
    fingerprint = key.fingerprint if key is not None else ""
    return ResponseRecord(fingerprint, status, location, body.model_dump(mode="json"))


def _claim(connection: Connection, key: IdempotencyKey, mine: KeyClaim) -> Answered | KeyClaim:
    """The answer that is known, or the claim under which there is none yet: ours or another's."""
    known = idempotency.find(connection, _place(key))
    if known is None:
        idempotency.claim(connection, _place(key), mine)
        return mine
    if isinstance(known, KeyClaim):
        _check_same_body(key, known)
        return known
    return _again(key, known)


def _again(key: IdempotencyKey, known: ResponseRecord | KeyClaim) -> Answered:
    _check_same_body(key, known)
    if isinstance(known, KeyClaim):
        message = "a request with this key is still being answered; ask again in a moment"
        raise Conflict(message, FieldProblem("Idempotency-Key", message, key.key))
    return Answered(known, is_replay=True)


def _check_same_body(key: IdempotencyKey, known: ResponseRecord | KeyClaim) -> None:
    if key.fingerprint != known.fingerprint:
        message = "this key was used with another body; a new request needs a new key"
        raise Unprocessable(message, FieldProblem("Idempotency-Key", message, key.key))


def _place(key: IdempotencyKey) -> Place:
    return (key.owner, key.key, key.route)
