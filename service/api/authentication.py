"""Nothing behind this layer is reached without a key, and no body is read for whoever has none."""

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from anyio import CapacityLimiter, sleep, to_thread
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.dependencies import METRICS, OPEN_PATHS, PROBES
from service.api.problems import refusal
from service.auth.authenticator import Authenticator, Caller
from service.auth.rate_limiter import RateLimiter
from service.errors import Forbidden, Refused, ServiceError
from service.telemetry.logs import name_principal

_HERE = "localhost"


class Hosts:
    """This machine's loopback, and the names that the operator has given it."""

    def __init__(self, named: Sequence[str]) -> None:
        self._named = frozenset(name.lower().removesuffix(".") for name in named)

    def check(self, scope: Scope) -> None:
        """Raises Forbidden for a request of a web page of elsewhere."""
        for host in headers(scope, b"host"):
            if not self._is_ours(f"//{host}"):
                raise Forbidden(
                    f"the Host is {host!r}; while no keys are asked for, permitted are 127.0.0.1, ::1, "
                    "localhost and the names in CMCL_ALLOWED_HOSTS. Add yours there, or set CMCL_AUTH to "
                    "on and send a key"
                )
        for origin in headers(scope, b"origin"):
            if not self._is_ours(origin):
                raise Forbidden(
                    f"pages of {origin!r} are refused while no keys are asked for: name its host in "
                    "CMCL_ALLOWED_HOSTS, or set CMCL_AUTH to on and send a key"
                )

    def _is_ours(self, address: str) -> bool:
        try:
            host = (urlsplit(address).hostname or "").removesuffix(".")
        except ValueError:
            return False
        return host == _HERE or host in self._named or _is_loopback(host)


def headers(scope: Scope, wanted: bytes) -> list[str]:
    """What each header of that name says; the name in lower case."""
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


_SCHEME = (
    "bearer"  # An issuer of tokens that hangs may hold up so many threads, and none of the others.
)
_THREADS_FOR_ISSUER = 4
_REFUSALS_PER_SECOND = 200
# Each keeps a connection that does not make room for others meanwhile.
_MOST_DELAYED = 256
# Less than the server waits for its requests when it stops.
_LONGEST_WAIT_SECONDS = 8.0


class Refusals:
    """Delays the answers to an address that is beyond its limit of refusals.

    A refusal takes time of the event loop, and a client that asks again at once, on hundreds of connections,
    would leave nothing of it for others. All of them together get some 200 a second; the connections of those
    that are beyond `_MOST_DELAYED` are closed instead. For use on the event loop alone.
    """

    def __init__(self, rate_limiter: RateLimiter) -> None:
        self._rate_limiter = rate_limiter
        self._waiting = 0

    async def delay(self, address: str) -> bool:
        """Return when a refusal of that address may be sent: whether its connection may stay open."""
        if self._rate_limiter.count_refusal(address):
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
    """Puts the principal into the request's state; counts requests, and notes a key's use."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator, hosts: Hosts) -> None:
        self._app = app
        self._authenticator = authenticator
        self._hosts = hosts
        self._refusals = Refusals(authenticator.rate_limiter)
        self._issuer_threads = CapacityLimiter(_THREADS_FOR_ISSUER)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        try:
            if self._authenticator.is_open:
                self._hosts.check(scope)
            caller = await self._admit(scope)
        except ServiceError as error:
            response = refusal(error, scope["path"])
            # A database that is away is no fault of the client.
            if isinstance(error, Refused) and not await self._refusals.delay(_address(scope)):
                response.headers["connection"] = "close"
            await response(scope, receive, send)
            return
        if caller is None:
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = caller.principal
        name_principal(caller.principal.name)
        await self._app(scope, receive, send)
        # Behind the answer, so that nobody waits for it.
        if self._authenticator.is_use_due(caller):
            await to_thread.run_sync(self._authenticator.write_use, caller)

    async def _admit(self, scope: Scope) -> Caller | None:
        """Nobody in particular where no key is asked for, whoever it is."""
        shown = _bearer(scope)
        if scope["path"] in OPEN_PATHS:
            self._authenticator.rate_limiter.count_open(_address(scope))
            if scope["path"] == METRICS:
                self._authenticator.check_scraper(shown)
            return None
        caller = self._authenticator.recognize(shown)
        if caller is None:
            caller = await self._look_up(shown or "", scope)
        self._authenticator.count(caller)
        return caller

    async def _look_up(self, shown: str, scope: Scope) -> Caller:
        """In a thread: the database or the issuer is asked."""
        limiter = self._issuer_threads if self._authenticator.asks_issuer(shown) else None
        return await to_thread.run_sync(
            self._authenticator.look_up, shown, _address(scope), limiter=limiter
        )


def _address(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else "unknown"


def _bearer(scope: Scope) -> str | None:
    """What stands behind `Authorization: Bearer`; two such headers are none."""
    given = headers(scope, b"authorization")
    if len(given) != 1:
        return None
    scheme, _, shown = given[0].partition(" ")
    return shown.strip() if scheme.lower() == _SCHEME and shown.strip() else None
