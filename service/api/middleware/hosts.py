"""Where no key is asked for, a browser on this machine must not do what some web page wants.

Such a page can send requests here in two ways: to our own address, and then the browser names the page's
(`Origin`); or to a name of its own that it has led to this machine since the page was loaded (DNS
rebinding), and then the browser asks for that name (`Host`). Programs other than browsers send what they
like, and are on this machine anyway.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.types import Scope

from service.errors import Forbidden

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
