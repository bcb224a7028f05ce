"""Allowed hosts: without keys, web pages must not reach the endpoint through a browser.

Such a page can send requests in two ways: to this address, and then the browser sends the page's `Origin`; or to a
name of its own that resolves to this address since the page was loaded (DNS rebinding), and then the browser sends
that name as `Host`. Numeric addresses cannot be rebound. Other programs than browsers can send any header; to keep
those out, require keys.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.types import Scope

from workers.serve.errors import Forbidden

_HERE = "localhost"
_ANY = "*"
# Clients of one endpoint use few names, and parsing one costs a twentieth of a request of one row.
_NAMES = 64


class AllowedHosts:
    """The names under which requests may ask for the endpoint, and whose web pages may."""

    def __init__(self, named: Sequence[str]) -> None:
        """`named`: beside this machine's loopback, and addresses in numbers; `*` is any."""
        self._named = frozenset(name.lower().removesuffix(".") for name in named)

    def check(self, scope: Scope) -> None:
        """Raises Forbidden."""
        if _ANY in self._named:
            return
        asked = [_name_in(f"//{host}") for host in _headers(scope, b"host")]
        for name in asked:
            if not self._is_known(name) and not _is_in_numbers(name):
                raise Forbidden(
                    f"the Host is {name[:60]!r}; without keys, permitted are numeric "
                    "addresses, localhost and the names in allowed_hosts. The operator can "
                    "add this one, or require keys",
                    code="unknown_host",
                )
        for origin in _headers(scope, b"origin"):
            page = _name_in(origin)
            if page not in asked and not self._is_known(page):
                raise Forbidden(
                    f"pages of {origin[:60]!r} are refused without keys. The operator "
                    "can add their host to allowed_hosts, or require keys",
                    code="unknown_origin",
                )

    def _is_known(self, name: str) -> bool:
        return name == _HERE or name in self._named or _is_loopback(name)


def _headers(scope: Scope, wanted: bytes) -> Iterator[str]:
    return (value.decode("latin-1") for name, value in scope["headers"] if name == wanted)


@lru_cache(_NAMES)
def _name_in(address: str) -> str:
    """Return the name in lower case, without port and final dot; empty where there is none."""
    try:
        return (urlsplit(address).hostname or "").removesuffix(".")
    except ValueError:
        return ""


@lru_cache(_NAMES)
def _is_in_numbers(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


@lru_cache(_NAMES)
def _is_loopback(name: str) -> bool:
    return _is_in_numbers(name) and ip_address(name).is_loopback
