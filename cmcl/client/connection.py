"""Addresses, key and retry policy of a client."""

import os
import random
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import httpx

from cmcl.client.errors import TRANSIENT_STATUSES, InvalidArgument, retry_after
from cmcl.client.wire import Side

DEFAULT_SERVICE_URL = "http://127.0.0.1:8000"
DEFAULT_EMBEDDINGS_URL = "http://127.0.0.1:8001"

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# Visible ASCII. httpx rejects anything else in a header, with an error that quotes the key.
_KEY = re.compile(r"[\x21-\x7e]+")

# Variables by which httpx finds other certificates than its own.
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")

_CONFLICT = 409
_PROXY_STATUSES = frozenset({404, 500})

HttpClient = TypeVar("HttpClient", httpx.Client, httpx.AsyncClient)


@dataclass(frozen=True)
class Connection:
    """Addresses of both servers, and the key. `timeout`: seconds per connect, read and write."""

    service_url: str
    embeddings_url: str
    key: str | None = field(repr=False)
    timeout: float

    @classmethod
    def of(
        cls, service_url: str, embeddings_url: str, key: str | None, timeout: float
    ) -> "Connection":
        """Validate the arguments. The key defaults to CMCL_KEY. Raises InvalidArgument."""
        _check_url(service_url, "CMCL_URL, --url or service_url")
        _check_url(embeddings_url, "CMCL_EMBEDDINGS_URL, --embeddings-url or embeddings_url")
        key = key if key is not None else os.environ.get("CMCL_KEY") or None
        if key is not None and not _KEY.fullmatch(key):
            raise InvalidArgument(
                "the key (CMCL_KEY, or the argument key) is empty or has invalid characters; a key "
                "consists of visible ASCII characters"
            )
        return cls(service_url, embeddings_url, key, timeout)

    @property
    def is_near(self) -> bool:
        """Whether the service runs on this machine."""
        return httpx.URL(self.service_url).host in _LOOPBACK

    @property
    def service_host(self) -> str:
        """The control plane's address, without credentials."""
        url = httpx.URL(self.service_url)
        return f"{url.scheme}://{url.netloc.decode('ascii')}"

    def open(self, make: Callable[..., HttpClient], transport: object) -> dict[Side, HttpClient]:
        """Create an HTTP client per server."""
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        bases = {Side.SERVICE: self.service_url, Side.EMBEDDINGS: self.embeddings_url}
        shared = {
            "timeout": self.timeout,
            "verify": _certificates(*map(os.environ.get, _CERTIFICATES)),
        }
        return {
            side: make(base_url=url, headers=headers, transport=transport, **shared)
            for side, url in bases.items()
        }


@cache
def _certificates(file: str | None, folder: str | None) -> ssl.SSLContext:
    """The certificates to trust. They are read once in a process: httpx would read them for each client, which takes tens
    of milliseconds."""
    del file, folder  # httpx reads the variables itself.
    return httpx.create_ssl_context()


def _check_url(url: str, set_by: str) -> None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidArgument(f"{url!r} is not a valid address: {error}; set {set_by}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidArgument(
            f"{url!r} is not a valid address; write http://HOST:PORT or https://HOST ({set_by})"
        )
    if parsed.path.rstrip("/").endswith("/v1"):
        without = str(parsed.copy_with(path=parsed.path.rstrip("/").removesuffix("/v1")))
        raise InvalidArgument(
            f"the address {_without_password(parsed)} ends with /v1, which the client adds itself; "
            f"write {_without_password(httpx.URL(without))} ({set_by})"
        )


def _without_password(url: httpx.URL) -> str:
    """Format an address for a message."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}{url.path.rstrip('/')}"


@dataclass(frozen=True)
class Retries:
    """Retry policy: exponential backoff with jitter of 50 %.

    Retries are safe: a POST has one Idempotency-Key per call, and all other requests are idempotent.
    `attempts=1` disables retries. A request whose Retry-After exceeds `longest_pause` (seconds) is
    not retried.
    """

    attempts: int = 4
    first_pause: float = 0.25
    longest_pause: float = 30.0
    jitter: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        if self.attempts < 1 or self.first_pause < 0 or self.longest_pause < 0:
            raise InvalidArgument(
                f"{self}: attempts must be at least 1, and pauses at least 0 seconds"
            )

    def pause(self, failed: int) -> float:
        """Return the seconds to wait after `failed` consecutive failures (1 or more)."""
        longest = min(self.longest_pause, self.first_pause * 2.0 ** min(failed - 1, 30))
        return longest * (0.5 + 0.5 * self.jitter())

    def pause_after(self, response: httpx.Response, failed: int) -> float | None:
        """Return the seconds until the next attempt, or None if the request should not be retried."""
        server_pause = retry_after(response)
        status = response.status_code
        # 409 with Retry-After: the same request is still in progress.
        transient = status in TRANSIENT_STATUSES or _is_from_proxy(response)
        if not transient and not (status == _CONFLICT and server_pause is not None):
            return None
        if failed >= self.attempts or (server_pause or 0) > self.longest_pause:
            return None
        return max(self.pause(failed), server_pause or 0.0)


def _is_from_proxy(response: httpx.Response) -> bool:
    """Whether a proxy answered for an unavailable server. Ray's HAProxy sends 500, or 404 at startup, in
    plain text; cmcl's servers send JSON."""
    media_type = str(response.headers.get("content-type", ""))
    return response.status_code in _PROXY_STATUSES and media_type.startswith("text/plain")
