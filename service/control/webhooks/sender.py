"""One message to one receiver: signed, to an address that was checked, within a bounded time.

What a receiver answers is never kept and never shown: of an address inside of our network it could
be something to read. The status and a sentence of ours must do.
"""

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import httpx
from standardwebhooks.webhooks import Webhook

from service.control.webhooks.addresses import AddressRefused, check_public, check_url, port_of
from service.control.webhooks.encryption import SecretCipher, SecretUnreadable
from service.control.webhooks.schedule import parse_retry_after
from service.database.queries.deliveries import DeliveryRecord
from service.database.queries.webhooks import WebhookRecord

logger = logging.getLogger(__name__)

# The specification asks for 15 to 30 seconds. All of it counts: name, connection, answer.
ANSWER_SECONDS = 15.0

# Looking up a name cannot be interrupted, and one that hangs must not take the threads of others.
_LOOKUPS = ThreadPoolExecutor(32, thread_name_prefix="webhook lookup")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True)
class Answer:
    """What came back: a status, or an error in words for the webhook's owner."""

    status: int | None = None
    error: str | None = None
    retry_after: float | None = None

    @property
    def is_taken(self) -> bool:
        """Any 2xx."""
        return self.status is not None and httpx.codes.is_success(self.status)

    @property
    def is_gone(self) -> bool:
        """The receiver wants no more of it."""
        return self.status == httpx.codes.GONE


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system finds them. Raises OSError."""
    loop = asyncio.get_running_loop()
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await loop.run_in_executor(_LOOKUPS, look_up)
    return list(dict.fromkeys(str(address[0]) for _, _, _, _, address in found))


class Sender:
    """Sends messages. Redirects are not followed, and no proxy of the environment is used."""

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
        # Made once: reading the certificates takes longer than a request.
        self._tls = tls or httpx.create_ssl_context()

    async def send(self, webhook: WebhookRecord, delivery: DeliveryRecord, now: datetime) -> Answer:
        """What came of it; whatever goes wrong with the receiver is an answer, too."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._send(webhook, delivery, now)
        except AddressRefused as error:
            return Answer(error=f"the address is not permitted: {error}")
        except SecretUnreadable as error:
            return Answer(error=f"its secret cannot be decrypted: {error}; tell the operator")
        except TimeoutError:
            return Answer(error=f"no answer within {self._seconds:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            # The details are for the operator: they may tell of our network.
            fields = {"webhook": webhook.id, "delivery": delivery.id}
            logger.info("a webhook could not be reached: %r", error, extra=fields)
            return Answer(error=_words(error))

    async def _send(
        self, webhook: WebhookRecord, delivery: DeliveryRecord, now: datetime
    ) -> Answer:
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
            # The body of the answer is left unread.
            response = await client.send(request, stream=True)
            await response.aclose()
        return _answer(response, now)


def _request(
    url: httpx.URL, address: str, secret: str, delivery: DeliveryRecord, now: datetime
) -> httpx.Request:
    """To the address, in the name of the host: also the certificate must be the host's."""
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
    error = f"it answered {status}"
    if httpx.codes.is_redirect(status):
        error += "; redirects are not followed"
    return Answer(status, error, parse_retry_after(response.headers.get("retry-after"), now))


def _words(error: Exception) -> str:
    # A name with a part of more than 63 characters cannot even be asked for.
    if isinstance(error, socket.gaierror | UnicodeError):
        return "its host name was not found"
    if isinstance(_cause(error), ssl.SSLError):
        return "no trusted connection could be made"
    if isinstance(error, httpx.ConnectError | OSError):
        return "no connection could be made"
    return "the connection broke, or the answer was not HTTP"


def _cause(error: BaseException) -> BaseException:
    """What the HTTP library's error was at first."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error
