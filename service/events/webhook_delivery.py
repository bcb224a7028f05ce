"""Delivery of webhook messages.

At least once: a delivery is recorded after its receiver accepted it, so one that was accepted just before the
process died is sent again, under the same `webhook-id`. Not concurrently: a webhook's lease is held while messages
are sent to it. Fair: each webhook has its own lease, order and pause after a failure, so a receiver that is down
takes one slot of `MAX_RUNNING` for 15 seconds every few minutes, and one owner never has all slots.

A failed message is retried at the intervals that the Standard Webhooks specification recommends, for three days.
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

from service.core.clock import Clock
from service.core.loops import Loop
from service.database.engine import Database
from service.database.queries import deliveries, webhooks
from service.database.queries.deliveries import Attempt, DeliveryRow
from service.database.queries.webhooks import WebhookRow
from service.events.feed import number_events
from service.events.webhook_sender import (
    ANSWER_SECONDS,
    LONGEST_RETRY_AFTER_SECONDS,
    Answer,
    Sender,
)

logger = logging.getLogger(__name__)

# Webhooks that are sent to at the same time.
MAX_RUNNING = 16
# Some slots are kept for other owners: a receiver that does not respond takes its slot for 15 seconds.
MAX_OF_ONE_OWNER = MAX_RUNNING - 2
_PAUSE_SECONDS = 0.5
# Pauses after an error.
_PAUSES_AFTER_ERROR = 10
# A lease is longer than a batch, whose last message may start just before its end.
_BATCH_SECONDS = 20.0
_LEASE_SECONDS = _BATCH_SECONDS + ANSWER_SECONDS + 25.0
_STOP_SECONDS = 5.0
# A webhook without a delivery for so long is disabled. Less than the time over which one message is retried, so the
# first message that is abandoned disables it.
_DISABLED_AFTER = timedelta(days=3)
_MINUTE, _HOUR = 60.0, 3600.0

# Seconds after the first, second, ... failed attempt.
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
MAX_ATTEMPTS = len(STEPS) + 1
# Messages that failed together must not be retried together.
_JITTER = 0.2
# After a failed message all messages of that webhook pause, at most so long: more often the receiver is down than the
# message is bad.
_LONGEST_PAUSE = 5 * _MINUTE

Chance = Callable[[], float]

# Called with the outcome of an attempt: "delivered", "retried" or "failed".
Observe = Callable[[str], None]


class Deliverer(Loop):
    """Sends what is due, concurrently for several webhooks."""

    name = "webhooks"

    def __init__(
        self,
        database: Database,
        sender: Sender,
        clock: Clock,
        observe: Observe = lambda _: None,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        super().__init__()
        self._database = database
        self._sender = sender
        self._clock = clock
        self._observe = observe
        self._pause = pause_seconds
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._busy: set[asyncio.Task[None]] = set()

    def run(self, stop: threading.Event) -> None:
        """Run rounds until `stop` is set, and give messages in transit some seconds to end."""
        asyncio.run(self._run(stop))

    async def round(self) -> None:
        """Send what is due, and wait for it."""
        await self._begin()
        await asyncio.gather(*self._busy)

    async def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            pause = self._pause
            try:
                # Also without listeners, so that the first one does not wait for the events of a year.
                await asyncio.to_thread(number_events, self._database)
                await self._begin()
            except Exception:
                logger.exception("webhooks are not delivered; will retry")
                pause *= _PAUSES_AFTER_ERROR
            self.beat()
            await asyncio.to_thread(stop.wait, pause)
        if self._busy:
            await asyncio.wait(self._busy, timeout=_STOP_SECONDS)

    async def _begin(self) -> None:
        """Claim webhooks for the free slots, and start to send."""
        for webhook in await asyncio.to_thread(self._claim, MAX_RUNNING - len(self._busy)):
            task = asyncio.create_task(self._serve(webhook))
            self._busy.add(task)
            task.add_done_callback(self._busy.discard)

    def _claim(self, slots: int) -> list[WebhookRow]:
        now = self._clock()
        if slots <= 0:
            return []
        with self._database.read() as connection:
            if not webhooks.is_any_due(connection, now):
                return []
        until = now + timedelta(seconds=_LEASE_SECONDS)
        with self._database.write() as connection:
            return webhooks.claim(connection, self._name, now, until, slots, MAX_OF_ONE_OWNER)

    async def _serve(self, webhook: WebhookRow) -> None:
        """Send messages of one webhook until one fails, none is due, or the batch is over."""
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
            # The other webhooks are not affected; the lease of this one expires.
            logger.exception("delivery to a webhook failed", extra={"webhook": webhook.id})

    async def _send(self, webhook: WebhookRow, delivery: DeliveryRow) -> Answer:
        try:
            return await self._sender.send(webhook, delivery, self._clock())
        except Exception:
            # A message that cannot be sent must not block those behind it.
            fields = {"webhook": webhook.id, "delivery": delivery.id}
            logger.exception("a message could not be sent", extra=fields)
            return Answer(error="internal server error; see the log of the service")

    def _next(self, webhook: WebhookRow) -> DeliveryRow | None:
        with self._database.read() as connection:
            return deliveries.next_due(connection, webhook.id, self._clock())

    def _release(self, webhook: WebhookRow) -> None:
        with self._database.write() as connection:
            webhooks.release(connection, webhook.id, self._name, self._clock())

    def _record(self, webhook: WebhookRow, delivery: DeliveryRow, answer: Answer) -> None:
        now = self._clock()
        with self._database.write() as connection:
            if answer.is_taken:
                deliveries.record_success(connection, delivery, Attempt(now, answer.status))
                outcome = "delivered"
            else:
                attempt = _failed(delivery, answer, now)
                if deliveries.record_failure(connection, delivery, attempt):
                    _disable_if_dead(connection, webhook.id, answer, attempt)
                outcome = "retried" if attempt.again_at else "failed"
        self._observe(outcome)


def _failed(delivery: DeliveryRow, answer: Answer, now: datetime) -> Attempt:
    """The attempt that failed, with the time of the next one."""
    wait = seconds_to_next(delivery.attempts + 1, answer.retry_after)
    rest = seconds_to_rest(wait, answer.retry_after)
    return Attempt(
        at=now,
        status=answer.status,
        error=answer.error,
        again_at=None if wait is None else now + timedelta(seconds=wait),
        rests_until=now + timedelta(seconds=rest),
    )


def _disable_if_dead(
    connection: Connection, webhook: str, answer: Answer, attempt: Attempt
) -> None:
    """Disable the webhook if its receiver responded 410, or nothing was delivered for days."""
    if answer.is_gone:
        reason = "it answered 410: the receiver wants no more messages"
        webhooks.disable(connection, webhook, reason, attempt.at)
        return
    found = webhooks.find(connection, webhook)
    since = found.failing_since if found else None
    if attempt.again_at is None and since and attempt.at - since >= _DISABLED_AFTER:
        reason = f"nothing was delivered since {since:%Y-%m-%d %H:%M} UTC; at last: {answer.error}"
        webhooks.disable(connection, webhook, reason, attempt.at)


def seconds_to_next(
    attempts: int, retry_after: float | None = None, chance: Chance = random.random
) -> float | None:
    """From the end of the `attempts`-th attempt to the next one; None after the last.

    `retry_after` is what the receiver asked for: it is given at least that, up to a day.
    """
    if attempts >= MAX_ATTEMPTS:
        return None
    seconds = STEPS[attempts - 1] * (1 + _JITTER * chance())
    return max(seconds, min(retry_after or 0.0, LONGEST_RETRY_AFTER_SECONDS))


def seconds_to_rest(seconds_to_next: float | None, retry_after: float | None = None) -> float:
    """How long the whole webhook is left alone after a failure."""
    asked_for = min(retry_after or 0.0, LONGEST_RETRY_AFTER_SECONDS)
    return max(min(seconds_to_next or _LONGEST_PAUSE, _LONGEST_PAUSE), asked_for)
