"""Addresses, key and retries: the arguments of both clients, checked."""

import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

from cmcl.client.errors import PASSING, InvalidArgument, retry_after
from cmcl.client.wire import Side

DEFAULT_SERVICE_URL = "http://127.0.0.1:8000"
DEFAULT_EMBEDDINGS_URL = "http://127.0.0.1:8001"

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# Visible ASCII. Anything else could not stand in a header, and the error would quote it.
_KEY = re.compile(r"[\x21-\x7e]+")

_CONFLICT = 409
_PROXYS = frozenset({404, 500})

HttpClient = TypeVar("HttpClient", httpx.Client, httpx.AsyncClient)


@dataclass(frozen=True)
class Connection:
    """Two addresses and a key. `timeout` in seconds, of connecting and of each read and write."""

    service_url: str
    embeddings_url: str
    key: str | None = field(repr=False)
    timeout: float

    @classmethod
    def of(
        cls, service_url: str, embeddings_url: str, key: str | None, timeout: float
    ) -> "Connection":
        """Checked; without a key, the one in CMCL_KEY. Raises InvalidArgument."""
        _check_url(service_url, "CMCL_URL, --url or service_url")
        _check_url(embeddings_url, "CMCL_EMBEDDINGS_URL, --embeddings-url or embeddings_url")
        key = key if key is not None else os.environ.get("CMCL_KEY") or None
        if key is not None and not _KEY.fullmatch(key):
            raise InvalidArgument(
                "the key (CMCL_KEY, or the argument key) has characters that no key has, or is empty"
            )
        return cls(service_url, embeddings_url, key, timeout)

    @property
    def is_near(self) -> bool:
        """Whether the service runs on this machine."""
        return httpx.URL(self.service_url).host in _LOOPBACK

    @property
    def service_host(self) -> str:
        """The control plane's address without what a URL may hold of secrets."""
        url = httpx.URL(self.service_url)
        return f"{url.scheme}://{url.netloc.decode('ascii')}"

    def open(self, make: Callable[..., HttpClient], transport: object) -> dict[Side, HttpClient]:
        """An HTTP client per side. The key goes to our two sides alone."""
        ours = {"authorization": f"Bearer {self.key}"} if self.key else {}
        bases = {Side.SERVICE: self.service_url, Side.EMBEDDINGS: self.embeddings_url}
        clients = {
            side: make(base_url=url, headers=ours, timeout=self.timeout, transport=transport)
            for side, url in bases.items()
        }
        clients[Side.ELSEWHERE] = make(timeout=self.timeout)
        return clients


def _check_url(url: str, set_by: str) -> None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidArgument(f"{url!r} is no address: {error}; set {set_by}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidArgument(
            f"{url!r} is no address; write http://HOST:PORT or https://HOST ({set_by})"
        )
    if parsed.path.rstrip("/").endswith("/v1"):
        without = str(parsed.copy_with(path=parsed.path.rstrip("/").removesuffix("/v1")))
        raise InvalidArgument(
            f"the address {_without_password(parsed)} ends with /v1, which the client adds itself; "
            f"write {_without_password(httpx.URL(without))} ({set_by})"
        )


def _without_password(url: httpx.URL) -> str:
    """An address as it may stand in a message."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}{url.path.rstrip('/')}"


@dataclass(frozen=True)
class Retries:
    """How often one request is sent, and the pauses in between: they double, and vary by a half.

    Asking again is safe: a POST carries an Idempotency-Key, made once per call, and all other
    requests have the same effect when they are sent twice. `attempts=1` sends everything once.
    `longest_pause` (seconds) also bounds what the server may ask for by Retry-After.
    """

    attempts: int = 4
    first_pause: float = 0.25
    longest_pause: float = 30.0
    jitter: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        """Raises CmclError."""
        if self.attempts < 1 or self.first_pause < 0 or self.longest_pause < 0:
            raise InvalidArgument(f"{self}: one attempt at least, and no pause below 0 seconds")

    def pause(self, failed: int) -> float:
        """Seconds to wait after so many failures in a row, the first of which is 1."""
        longest = min(self.longest_pause, self.first_pause * 2.0 ** min(failed - 1, 30))
        return longest * (0.5 + 0.5 * self.jitter())

    def pause_after(self, response: httpx.Response, failed: int) -> float | None:
        """Seconds until the request may succeed; None where asking again is of no use."""
        asked = retry_after(response)
        status = response.status_code
        # 409 with a time: the same request is being carried out just now.
        passing = status in PASSING or _is_of_a_proxy(response)
        if not passing and not (status == _CONFLICT and asked is not None):
            return None
        if failed >= self.attempts or (asked or 0) > self.longest_pause:
            return None
        return max(self.pause(failed), asked or 0.0)


def _is_of_a_proxy(response: httpx.Response) -> bool:
    """Whether a proxy answered for a server that is away: Ray's HAProxy says 500 then, or 404 while
    it starts, in plain text. Our own servers say everything in JSON."""
    media_type = str(response.headers.get("content-type", ""))
    return response.status_code in _PROXYS and media_type.startswith("text/plain")
