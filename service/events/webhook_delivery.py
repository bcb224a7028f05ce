"""Delivers what is due, for as long as the service runs.

At least once: a message is recorded as delivered after its receiver took it, so one that was taken
just before the service died is sent again, under the same `webhook-id`. Not twice at the same time:
a webhook's lease is held while it is sent to. And fair: each webhook has a lease, an order and a
rest after a failure of its own, so a receiver that is down costs the others one place among
`PLACES` for 15 seconds, every few minutes, and one owner never has all of the places.
"""

import asyncio
import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import Connection

from service.clock import Clock
from service.database.engine import Database
from service.database.queries import deliveries, webhooks
from service.database.queries.deliveries import Attempt, DeliveryRecord
from service.database.queries.webhooks import WebhookRecord
from service.events.feed import number_events
from service.events.webhook_sender import (
    ANSWER_SECONDS,
    LONGEST_RETRY_AFTER_SECONDS,
    Answer,
    Sender,
)

logger = logging.getLogger(__name__)

# Webhooks that are sent to at the same time.
PLACES = 16
# Some are kept for other owners: a receiver that does not answer holds its place for 15 seconds.
MOST_OF_ONE_OWNER = PLACES - 2
_PAUSE_SECONDS = 0.5
# After an error, so many pauses.
_PAUSES_AFTER_ERROR = 10
# A lease outlasts a batch, whose last message may begin just before the batch's end.
_BATCH_SECONDS = 20.0
_LEASE_SECONDS = _BATCH_SECONDS + ANSWER_SECONDS + 25.0
_STOP_SECONDS = 5.0
# Shorter than the time over which one message is tried: the first that is given up ends it.
_HOPELESS = timedelta(days=3)


_MINUTE, _HOUR = 60.0, 3600.0

# Seconds after the first, the second... attempt that failed.
STEPS = (
    5.0,
    5 * _MINUTE,
    30 * _MINUTE,
    2 * _HOUR,
    5 * _HOUR,
    10 * _HOUR,
    14 * _HOUR,
    20 * _HOUR,
    24 * _HOUR,
)

MOST_ATTEMPTS = len(STEPS) + 1

# Many messages that failed together must not come back together.
_JITTER = 0.2


# One message fails, and all others of that webhook wait so long at most: its receiver is down more
# often than the message is bad.
_LONGEST_REST = 5 * _MINUTE

Chance = Callable[[], float]

# What came of an attempt: "delivered", "retried" or "failed".
Observe = Callable[[str], None]


class Deliverer:
    """Sends messages from a thread of its own."""

    def __init__(
        self,
        database: Database,
        sender: Sender,
        clock: Clock,
        observe: Observe = lambda _: None,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        self._database = database
        self._sender = sender
        self._clock = clock
        self._observe = observe
        self._pause_seconds = pause_seconds
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._busy: set[asyncio.Task[None]] = set()

    def run(self, stop: threading.Event) -> None:
        """Rounds until `stop` is set; what is being sent then has some seconds to end."""
        asyncio.run(self._run(stop))

    async def round(self) -> None:
        """Send what is due now, and wait until it is sent."""
        await self._begin()
        await asyncio.gather(*self._busy)

    async def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            pause = self._pause_seconds
            try:
                # Also without listeners, so that the first one does not meet a year's events.
                await asyncio.to_thread(number_events, self._database)
                await self._begin()
            except Exception:
                # The database is away. If that ended the thread, nobody would be told any more.
                logger.exception("webhooks are not being delivered")
                pause *= _PAUSES_AFTER_ERROR
            await asyncio.to_thread(stop.wait, pause)
        if self._busy:
            await asyncio.wait(self._busy, timeout=_STOP_SECONDS)

    async def _begin(self) -> None:
        """Claim webhooks for the places that are free, and start to send."""
        for webhook in await asyncio.to_thread(self._claim, PLACES - len(self._busy)):
            task = asyncio.create_task(self._serve(webhook))
            self._busy.add(task)
            task.add_done_callback(self._busy.discard)

    def _claim(self, places: int) -> list[WebhookRecord]:
        now = self._clock()
        if places <= 0:
            return []
        with self._database.read() as connection:
            if not webhooks.is_any_due(connection, now):
                return []
        until = now + timedelta(seconds=_LEASE_SECONDS)
        with self._database.write() as connection:
            return webhooks.claim(connection, self._name, now, until, places, MOST_OF_ONE_OWNER)

    async def _serve(self, webhook: WebhookRecord) -> None:
        """One webhook's turn: message after message, until one fails or others should have it."""
        began = time.monotonic()
        try:
            while time.monotonic() - began < _BATCH_SECONDS:
                delivery = await asyncio.to_thread(self._next, webhook)
                if delivery is None:
                    break
                answer = await self._send(webhook, delivery)
                await asyncio.to_thread(self._record, webhook, delivery, answer)
                if not answer.is_taken:
                    break
            await asyncio.to_thread(self._release, webhook)
        except Exception:
            # Whatever it is, the other webhooks are served; this one's lease runs out by itself.
            logger.exception("a webhook was not served", extra={"webhook": webhook.id})

    async def _send(self, webhook: WebhookRecord, delivery: DeliveryRecord) -> Answer:
        try:
            return await self._sender.send(webhook, delivery, self._clock())
        except Exception:
            # A message that we cannot send must not keep those behind it from being sent.
            fields = {"webhook": webhook.id, "delivery": delivery.id}
            logger.exception("a message could not be sent", extra=fields)
            return Answer(error="internal server error; see the log of the service")

    def _next(self, webhook: WebhookRecord) -> DeliveryRecord | None:
        with self._database.read() as connection:
            return deliveries.next_due(connection, webhook.id, self._clock())

    def _release(self, webhook: WebhookRecord) -> None:
        with self._database.write() as connection:
            webhooks.release(connection, webhook.id, self._name, self._clock())

    def _record(self, webhook: WebhookRecord, delivery: DeliveryRecord, answer: Answer) -> None:
        now = self._clock()
        with self._database.write() as connection:
            if answer.is_taken:
                deliveries.record_success(connection, delivery, Attempt(now, answer.status))
                outcome = "delivered"
            else:
                attempt = _failed(delivery, answer, now)
                if deliveries.record_failure(connection, delivery, attempt):
                    _disable_if_hopeless(connection, webhook.id, answer, attempt)
                outcome = "retried" if attempt.again_at else "failed"
        self._observe(outcome)


def _failed(delivery: DeliveryRecord, answer: Answer, now: datetime) -> Attempt:
    """What is to happen after an attempt that was not taken."""
    wait = seconds_to_next(delivery.attempts + 1, answer.retry_after)
    rest = seconds_to_rest(wait, answer.retry_after)
    return Attempt(
        at=now,
        status=answer.status,
        error=answer.error,
        again_at=None if wait is None else now + timedelta(seconds=wait),
        rests_until=now + timedelta(seconds=rest),
    )


def _disable_if_hopeless(
    connection: Connection, webhook: str, answer: Answer, attempt: Attempt
) -> None:
    """The receiver said that it is gone, or nothing has reached it for days."""
    if answer.is_gone:
        reason = "it answered 410: the receiver wants no more messages"
        webhooks.disable(connection, webhook, reason, attempt.at)
        return
    found = webhooks.find(connection, webhook)
    since = found.failing_since if found else None
    if attempt.again_at is None and since and attempt.at - since >= _HOPELESS:
        reason = f"nothing was delivered since {since:%Y-%m-%d %H:%M} UTC; at last: {answer.error}"
        webhooks.disable(connection, webhook, reason, attempt.at)


def seconds_to_next(
    attempts: int, retry_after: float | None = None, chance: Chance = random.random
) -> float | None:
    """From the end of the `attempts`-th attempt to the next one; None after the last.

    `retry_after` is what the receiver asked for: it is given at least that, up to a day.
    """
    if attempts >= MOST_ATTEMPTS:
        return None
    seconds = STEPS[attempts - 1] * (1 + _JITTER * chance())
    return max(seconds, min(retry_after or 0.0, LONGEST_RETRY_AFTER_SECONDS))


def seconds_to_rest(seconds_to_next: float | None, retry_after: float | None = None) -> float:
    """How long the whole webhook is left alone after a failure."""
    asked_for = min(retry_after or 0.0, LONGEST_RETRY_AFTER_SECONDS)
    return max(min(seconds_to_next or _LONGEST_REST, _LONGEST_REST), asked_for)
