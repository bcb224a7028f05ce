"""Answers to POSTs: done and remembered in one transaction, repeated for the same key."""

from collections.abc import Callable

from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import Connection

from service.api.dependencies import RequestKey
from service.control.context import Context
from service.database import answers
from service.database.rows import AnswerRecord
from service.errors import FieldProblem, Unprocessable


def answer(
    context: Context, key: RequestKey | None, effect: Callable[[Connection], AnswerRecord]
) -> JSONResponse:
    """What `effect` answers; what it answered before, if the key was used before.

    Refusals are not remembered: nothing was done, so asking again is harmless.
    """
    if key is None:
        return _response(context.database.settle(effect))
    before: list[AnswerRecord] = []

    def once(connection: Connection) -> AnswerRecord:
        known = answers.find(connection, key.owner, key.key, key.route)
        if known is not None:
            _check_same_body(key, known)
            before.append(known)
            return known
        fresh = effect(connection)
        answers.remember(connection, key.owner, key.key, key.route, fresh, context.clock())
        return fresh

    response = _response(context.database.settle(once))
    if before:
        response.headers["Idempotency-Replayed"] = "true"
    return response


def record(
    key: RequestKey | None, status: int, body: BaseModel, location: str | None = None
) -> AnswerRecord:
    """An answer in the form in which it is sent and kept."""
    fingerprint = key.fingerprint if key is not None else ""
    return AnswerRecord(fingerprint, status, location, body.model_dump(mode="json"))


def _check_same_body(key: RequestKey, known: AnswerRecord) -> None:
    if key.fingerprint != known.fingerprint:
        message = "this key was used with another body; a new request needs a new key"
        raise Unprocessable(message, FieldProblem("Idempotency-Key", message, key.key))


def _response(known: AnswerRecord) -> JSONResponse:
    headers = {"Location": known.location} if known.location else None
    return JSONResponse(known.body, known.status, headers=headers)
