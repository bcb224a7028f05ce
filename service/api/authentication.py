"""Authentication of every request, before its body is read.

Without keys (CMCL_AUTH=off) a web page must not be able to use the service through a browser on the same machine. Such
a page can send requests to the service's own address, and the browser adds the page's `Origin`; or to a host name that
the page has rebound to this machine (DNS rebinding), and the browser sends that name as `Host`. Other programs may send
any header, and run on this machine anyway.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from anyio import sleep, to_thread
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.dependencies import METRICS, OPEN_PATHS, PROBES
from service.api.problems import error_response
from service.auth.authenticator import Authenticator, Caller
from service.auth.rate_limiter import RateLimiter
from service.core.errors import Forbidden, Rejected, ServiceError
from service.telemetry.logs import name_principal

_HERE = "localhost"


class Hosts:
    """Permits the loopback addresses and the host names of the settings."""

    def __init__(self, named: Sequence[str]) -> None:
        self._named = frozenset(name.lower().removesuffix(".") for name in named)

    def check(self, scope: Scope) -> None:
        """Raises Forbidden for a request from a web page of another origin."""
        for host in headers(scope, b"host"):
            if not self._is_own_host(f"//{host}"):
                raise Forbidden(
                    f"the Host is {host!r}; without keys, permitted are 127.0.0.1, ::1, "
                    "localhost and the names in CMCL_ALLOWED_HOSTS. Add yours there, or set CMCL_AUTH to "
                    "on and send a key"
                )
        for origin in headers(scope, b"origin"):
            if not self._is_own_host(origin):
                raise Forbidden(
                    f"requests from pages of {origin!r} are refused without keys: add its host to "
                    "CMCL_ALLOWED_HOSTS, or set CMCL_AUTH to on and send a key"
                )

    def _is_own_host(self, address: str) -> bool:
        try:
            host = (urlsplit(address).hostname or "").removesuffix(".")
        except ValueError:
            return False
        return host in self._named or is_loopback(host)


def headers(scope: Scope, wanted: bytes) -> list[str]:
    """The values of a header; its name in lower case."""
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without a port, is one of this machine."""
    if host == _HERE:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


_SCHEME = "bearer"
_REFUSALS_PER_SECOND = 200
# Each keeps a connection open.
_MOST_DELAYED = 256
# Less than the server waits for requests when it stops.
_LONGEST_WAIT_SECONDS = 8.0


class Rejections:
    """Delays rejections to an address beyond its limit.

    A rejection takes time of the event loop, and a client that retries at once on hundreds of connections would leave
    none for others. All delayed rejections together are some 200 a second; connections beyond `_MOST_DELAYED` are closed.
    For use on the event loop alone.
    """

    def __init__(self, rate_limiter: RateLimiter) -> None:
        self._rate_limiter = rate_limiter
        self._waiting = 0

    async def delay(self, address: str) -> bool:
        """Wait until a rejection to that address may be sent. Return whether the connection may stay open."""
        if self._rate_limiter.count_rejection(address):
            return True
        if self._waiting >= _MOST_DELAYED:
            return False
        self._waiting += 1
        try:
            await sleep(min(_LONGEST_WAIT_SECONDS, 1.0 + self._waiting / _REFUSALS_PER_SECOND))
        finally:
            self._waiting -= 1
        return True


class Authentication:
    """ASGI middleware that sets the principal of a request, counts it, and records the use of its key."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator, hosts: Hosts) -> None:
        self._app = app
        self._authenticator = authenticator
        self._hosts = hosts
        self._rejections = Rejections(authenticator.rate_limiter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        try:
            if self._authenticator.is_open:
                self._hosts.check(scope)
            caller = await self._admit(scope)
        except ServiceError as error:
            response = error_response(error, scope["path"])
            # An outage of the database is not the client's fault.
            if isinstance(error, Rejected) and not await self._rejections.delay(address_of(scope)):
                response.headers["connection"] = "close"
            await response(scope, receive, send)
            return
        if caller is None:
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = caller.principal
        name_principal(caller.principal.name)
        await self._app(scope, receive, send)
        # After the response, so that the client does not wait for it.
        if self._authenticator.is_use_due(caller):
            await to_thread.run_sync(self._authenticator.write_use, caller)

    async def _admit(self, scope: Scope) -> Caller | None:
        """Authenticate the request; None for a path that needs no key."""
        shown = bearer(scope)
        if scope["path"] in OPEN_PATHS:
            self._authenticator.rate_limiter.count_open(address_of(scope))
            if scope["path"] == METRICS:
                self._authenticator.check_scraper(shown)
            return None
        caller = await self._authenticator.identify(shown, address_of(scope))
        self._authenticator.count(caller)
        return caller


def address_of(scope: Scope) -> str:
    """The address of the client."""
    return scope["client"][0] if scope.get("client") else "unknown"


def bearer(scope: Scope) -> str | None:
    """The credentials of `Authorization: Bearer`; None if the header is missing or repeated."""
    given = headers(scope, b"authorization")
    if len(given) != 1:
        return None
    scheme, _, shown = given[0].partition(" ")
    return shown.strip() if scheme.lower() == _SCHEME and shown.strip() else None
