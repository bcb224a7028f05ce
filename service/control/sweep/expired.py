"""What is kept for a while only: uploads, answers to keys, events, deliveries, pre-flights, what
replicas told of trials.
"""

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import Connection

from service.control.context import Context
from service.control.sweep.ended import forget_attempts
from service.control.sweep.purge import remove_all
from service.database.queries import (
    deliveries,
    events,
    preflights,
    sweeping,
    trials,
    uploads,
)
from workers.storage import layout

# A replica that has not heard of a trial's end goes on writing; none takes that long.
_AFTER_A_TRIAL = timedelta(hours=1)
_AT_ONCE = 100
_ROWS_AT_ONCE = 1000
_MOST_BATCHES = 20


def sweep_uploads(context: Context) -> None:
    """Those that nobody finished, named or needs: first given up, then removed, then forgotten."""
    before = context.clock() - timedelta(hours=context.settings.upload_expiry_hours)
    with context.database.read() as connection:
        expired = uploads.expired(connection, before, _AT_ONCE)
    for upload in expired:
        _give_up_upload(context, upload)
    with context.database.read() as connection:
        given_up = uploads.given_up(connection, _AT_ONCE)
    for upload in given_up:
        if remove_all(context.store, layout.upload_prefix(upload)):
            with context.database.write() as connection:
                uploads.remove(connection, upload)


def sweep_answers(context: Context) -> None:
    """Answers to idempotency keys."""
    before = context.clock() - timedelta(hours=context.settings.idempotency_hours)
    _in_batches(
        context, lambda connection: sweeping.forget_answers(connection, before, _ROWS_AT_ONCE)
    )


def sweep_events(context: Context) -> None:
    """Events, and deliveries that will not be sent again."""
    before = context.clock() - timedelta(days=context.settings.events_kept_days)
    _in_batches(
        context, lambda connection: deliveries.forget_before(connection, before, _ROWS_AT_ONCE)
    )
    _in_batches(context, lambda connection: events.forget_before(connection, before, _ROWS_AT_ONCE))


def sweep_preflights(context: Context) -> None:
    """Those that ended as long ago as events are kept."""
    before = context.clock() - timedelta(days=context.settings.events_kept_days)
    with context.database.read() as connection:
        ended = preflights.ended_before(connection, before, _AT_ONCE)
    for preflight in ended:
        forget_attempts(context, preflight.id, preflight.attempt)
        if remove_all(context.store, layout.runs_prefix(preflight.id)):
            with context.database.write() as connection:
                preflights.forget(connection, preflight.id)


def sweep_observations(context: Context) -> None:
    """Of trials that ended. Their sums stay in the database."""
    with context.database.read() as connection:
        ended = trials.ended_before(connection, context.clock() - _AFTER_A_TRIAL, _AT_ONCE)
    for trial in ended:
        if remove_all(context.store, layout.observations(trial.model, trial.revision)):
            with context.database.write() as connection:
                trials.set_swept(connection, trial, context.clock())


def _give_up_upload(context: Context, upload: str) -> None:
    """Unless a dataset has named it since it was found."""
    with context.database.write() as connection:
        uploads.lock(connection, upload)
        if not uploads.is_needed(connection, upload):
            uploads.abort(connection, upload)


def _in_batches(context: Context, forget: Callable[[Connection], int]) -> None:
    """Short transactions, so that nobody waits long for any of them."""
    for _ in range(_MOST_BATCHES):
        with context.database.write() as connection:
            forgotten = forget(connection)
        if forgotten < _ROWS_AT_ONCE:
            return
