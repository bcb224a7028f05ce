"""Delivery of webhook messages: signed, to a checked address, within a time limit; and when to try again.

The response body is never stored or shown: if the address were inside our network, it could leak internal data. Only the
status and an error message of our own are kept.

At least once: a delivery is recorded after its receiver accepted it, so one that was accepted just before the
process died is sent again, under the same `webhook-id`. Not concurrently: a webhook's lease is held while messages
are sent to it. Fair: each webhook has its own lease, order and pause after a failure, so a receiver that is down
takes one slot of `MAX_RUNNING` for 15 seconds every few minutes, and one owner never has all slots.

A failed message is retried at the intervals that the Standard Webhooks specification recommends, for three days.
"""

import asyncio
import ipaddress
import json
import logging
import os
import random
import re
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial

import httpx
from sqlalchemy import Connection
from standardwebhooks.webhooks import Webhook

from service.core.clock import Clock
from service.core.loops import Loop
from service.database.engine import Database
from service.database.queries import deliveries, webhooks
from service.database.queries.deliveries import Attempt, DeliveryRow
from service.database.queries.webhooks import WebhookRow
from service.events.feed import number_events
from service.events.webhook_secrets import SecretCipher, SecretUnreadable

logger = logging.getLogger(__name__)

# The specification recommends 15 to 30 seconds, in total: name lookup, connection, response.
ANSWER_SECONDS = 15.0
# A receiver may request a pause of at most a day.
LONGEST_RETRY_AFTER_SECONDS = 24 * 3600.0

# A name lookup cannot be interrupted, so a hanging one must not occupy shared threads.
_LOOKUPS = ThreadPoolExecutor(32, thread_name_prefix="webhook lookup")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

LONGEST_URL = 1024

_DEFAULT_PORTS = {"http": 80, "https": 443}

_LARGEST_PORT = 65535

# A name in ASCII, as it is looked up, or a number.
_HOST = re.compile(rb"^[A-Za-z0-9._:-]+$")

# IPv6 addresses that a gateway turns into the IPv4 address in their last four bytes (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

# All public addresses are in this range. Others are local or reserved, or embed an IPv4 address to
# which a stack or gateway may forward: ::/96, ::ffff:0:0:0/96,
# 64:ff9b:1::/48.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

# From the IANA registries of special-purpose addresses, those that `ipaddress` calls global in one of the
# Python versions that this runs on. Of 192.0.0.0/24 and 2001::/23 some addresses are reachable, and
# all of them lead to protocol machinery: relays, port control, Teredo's embedded IPv4 addresses.
_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "3fff::/20")
)

# Encoded like this, a path could leave a prefix after the check.
_HIDDEN_STEPS = ("%2e", "%2f", "%5c", "\\")


class AddressRejected(Exception):
    """The address is not permitted; the message has the reason for its author."""


@dataclass(frozen=True)
class Answer:
    """The result: a status, or an error message for the webhook's owner."""

    status: int | None = None
    error: str | None = None
    retry_after: float | None = None

    @property
    def is_taken(self) -> bool:
        """Whether the status is 2xx."""
        return self.status is not None and httpx.codes.is_success(self.status)

    @property
    def is_gone(self) -> bool:
        """Whether the receiver has asked to stop."""
        return self.status == httpx.codes.GONE


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """The addresses of a host from the system's resolver. Raises OSError."""
    loop = asyncio.get_running_loop()
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await loop.run_in_executor(_LOOKUPS, look_up)
    return list(dict.fromkeys(str(address[0]) for _, _, _, _, address in found))


class Sender:
    """Sends messages, without following redirects or using a proxy from the environment."""

    def __init__(
        self,
        prefixes: Sequence[str],
        seconds: float = ANSWER_SECONDS,
        resolve: Resolve = resolve_host,
        tls: ssl.SSLContext | None = None,
        cipher: SecretCipher | None = None,
    ) -> None:
        self._prefixes = prefixes
        self._seconds = seconds
        self._resolve = resolve
        self._cipher = cipher or SecretCipher()
        # Created once: loading the certificates takes longer than a request.
        self._tls = tls or httpx.create_ssl_context()

    async def send(self, webhook: WebhookRow, delivery: DeliveryRow, now: datetime) -> Answer:
        """Send one message. Failures of the receiver are returned, not raised."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._send(webhook, delivery, now)
        except AddressRejected as error:
            return Answer(error=f"the address is not permitted: {error}")
        except SecretUnreadable as error:
            return Answer(error=f"its secret cannot be decrypted: {error}; inform the operator")
        except TimeoutError:
            return Answer(error=f"no response within {self._seconds:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            # Details are logged for the operator only: they may reveal our network.
            fields = {"webhook": webhook.id, "delivery": delivery.id}
            logger.info("a webhook could not be reached: %r", error, extra=fields)
            return Answer(error=_message(error))

    async def _send(self, webhook: WebhookRow, delivery: DeliveryRow, now: datetime) -> Answer:
        url = check_url(webhook.url, self._prefixes)
        addresses = await self._resolve(url.host, port_of(url))
        if not addresses:
            return Answer(error="its host has no address")
        if not self._prefixes:
            check_public(addresses)
        secret = self._cipher.decrypt(webhook.secret, webhook.id)
        request = _request(url, addresses[0], secret, delivery, now)
        # A client per message: a connection is never shared between two names of one address.
        client = httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=self._seconds)
        async with client:
            # The response body is not read.
            response = await client.send(request, stream=True)
            await response.aclose()
        return _answer(response, now)


def _request(
    url: httpx.URL, address: str, secret: str, delivery: DeliveryRow, now: datetime
) -> httpx.Request:
    """A request to the resolved address, with Host header and certificate check for the host name."""
    body = json.dumps(delivery.payload, sort_keys=True, separators=(",", ":"))
    headers = {
        "Host": url.netloc.decode("ascii"),
        "Content-Type": "application/json",
        "User-Agent": "cmcl-webhooks",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(delivery.id, now, body),
    }
    return httpx.Request(
        "POST",
        url.copy_with(host=address),
        headers=headers,
        content=body,
        extensions={"sni_hostname": url.host, "timeout": httpx.Timeout(ANSWER_SECONDS).as_dict()},
    )


def _answer(response: httpx.Response, now: datetime) -> Answer:
    status = response.status_code
    if httpx.codes.is_success(status):
        return Answer(status)
    error = f"the response status was {status}"
    if httpx.codes.is_redirect(status):
        error += "; redirects are not followed"
    return Answer(status, error, parse_retry_after(response.headers.get("retry-after"), now))


def _message(error: Exception) -> str:
    # UnicodeError: a label of more than 63 characters cannot even be looked up.
    if isinstance(error, socket.gaierror | UnicodeError):
        return "its host name was not found"
    if isinstance(_cause(error), ssl.SSLError):
        return "no trusted connection could be made"
    if isinstance(error, httpx.ConnectError | OSError):
        return "no connection could be made"
    return "the connection broke, or the response was not HTTP"


def _cause(error: BaseException) -> BaseException:
    """The root cause of the HTTP library's error."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


def check_url(text: str, prefixes: Sequence[str]) -> httpx.URL:
    """The address, normalized. Raises AddressRejected.

    Without prefixes, any https address is permitted. With prefixes, only addresses under one of
    them, for which the operator permits plain http and private addresses.
    """
    url = _parsed(text)
    if url.userinfo or url.fragment:
        raise AddressRejected(
            "an address with a user name, a password or a # part is not permitted"
        )
    if prefixes:
        if not any(is_under(url, httpx.URL(prefix)) for prefix in prefixes):
            raise AddressRejected(f"permitted are addresses under: {', '.join(prefixes)}")
    elif url.scheme != "https":
        raise AddressRejected("permitted are https addresses")
    else:
        _check_literal(url.host)
    return url


def is_under(url: httpx.URL, prefix: httpx.URL) -> bool:
    """Whether scheme, host and port are equal and the path is at or below the prefix's."""
    path, root = url.raw_path.decode("ascii").lower(), prefix.path.rstrip("/").lower()
    if any(step in path.partition("?")[0] for step in _HIDDEN_STEPS):
        return False
    is_same_server = (url.scheme, url.host, port_of(url)) == (
        prefix.scheme,
        prefix.host,
        port_of(prefix),
    )
    return is_same_server and (url.path.lower() == root or url.path.lower().startswith(f"{root}/"))


def port_of(url: httpx.URL) -> int:
    return url.port or _DEFAULT_PORTS.get(url.scheme, 0)


def check_public(addresses: Sequence[str]) -> None:
    """Raises AddressRejected unless all of them are public.

    All of them: the owner of a name may give it a public address as well as a private one.
    """
    if not all(is_public(ipaddress.ip_address(address)) for address in addresses):
        raise AddressRejected("its host does not lead to the public internet")


def is_public(address: IpAddress) -> bool:
    """Whether the address is public; an embedded IPv4 address decides for an IPv6 one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(address.packed[-4:])
        if inner is not None:
            return is_public(inner)
        if address not in _GLOBAL_UNICAST:
            return False
    if any(address in network for network in _SPECIAL):
        return False
    return address.is_global and not address.is_multicast


def _parsed(text: str) -> httpx.URL:
    if len(text) > LONGEST_URL:
        raise AddressRejected(f"it has {len(text)} characters, permitted are {LONGEST_URL}")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise AddressRejected("it is not an address such as https://example.com/hook") from error
    is_host = _HOST.match(url.raw_host) is not None
    if url.scheme not in _DEFAULT_PORTS or not is_host or not 0 < port_of(url) <= _LARGEST_PORT:
        raise AddressRejected("it is not an address such as https://example.com/hook")
    if len(str(url)) > LONGEST_URL:
        raise AddressRejected(f"encoded, it has more than {LONGEST_URL} characters")
    return url


def _check_literal(host: str) -> None:
    """Check a literal IP address, which needs no lookup."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if not is_public(address):
        raise AddressRejected(f"{host} is not an address of the public internet")


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110: a number or a date)."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), LONGEST_RETRY_AFTER_SECONDS)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - now) / timedelta(seconds=1), 0.0)


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
# A webhook without a delivery for this long is disabled. Less than the time over which one message is retried, so the
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
# After a failed message all messages of that webhook pause, at most this long: more often the receiver is down than the
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
            assert len(self._busy) <= MAX_RUNNING
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
    assert attempts >= 1
    seconds = STEPS[attempts - 1] * (1 + _JITTER * chance())
    return max(seconds, min(retry_after or 0.0, LONGEST_RETRY_AFTER_SECONDS))


def seconds_to_rest(seconds_to_next: float | None, retry_after: float | None = None) -> float:
    """How long the whole webhook is left alone after a failure."""
    asked_for = min(retry_after or 0.0, LONGEST_RETRY_AFTER_SECONDS)
    return max(min(seconds_to_next or _LONGEST_PAUSE, _LONGEST_PAUSE), asked_for)
