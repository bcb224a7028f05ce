"""Where a webhook may lie: the service must not become a way into the network that it runs in.

An address is checked twice: its text when the webhook is made, and where it leads each time before
something is sent. What was checked is what is connected to (see `sender`), because a name can lead
to a public address when it is looked up for the check, and to a private one a moment later.
"""

import ipaddress
import re
from collections.abc import Sequence

import httpx

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

LONGEST_URL = 1024
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LARGEST_PORT = 65535
# A name in ASCII, as it is looked up, or a number.
_HOST = re.compile(rb"^[A-Za-z0-9._:-]+$")
# IPv6 addresses that a gateway turns into the IPv4 address in their last four bytes (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# All that is given to the internet lies in there. What lies outside of it is local or reserved, or
# carries an IPv4 address that a stack or a gateway may go on to: ::/96, ::ffff:0:0:0/96,
# 64:ff9b:1::/48.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Of the IANA registries of special-purpose addresses, what `ipaddress` calls global in one of the
# Python versions that this runs on. Of 192.0.0.0/24 and 2001::/23 some addresses are reachable, and
# all of them lead to protocol machinery: relays, port control, Teredo's embedded IPv4 addresses.
_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",
        "192.88.99.0/24",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
    )
)
# Written so, a path can leave a prefix after the check.
_HIDDEN_STEPS = ("%2e", "%2f", "%5c", "\\")


class AddressRefused(Exception):
    """The address is not permitted; the message says why, to its author."""


def check_url(text: str, prefixes: Sequence[str]) -> httpx.URL:
    """The address, normalized. Raises AddressRefused.

    Without prefixes any https address may be given. With prefixes, those under one of them: they
    are the operator's word that plain http and private addresses are meant there.
    """
    url = _parsed(text)
    if url.userinfo or url.fragment:
        raise AddressRefused("an address with a user name, a password or a # part is not permitted")
    if prefixes:
        if not any(is_under(url, httpx.URL(prefix)) for prefix in prefixes):
            raise AddressRefused(f"permitted are addresses under: {', '.join(prefixes)}")
    elif url.scheme != "https":
        raise AddressRefused("permitted are https addresses")
    else:
        _check_literal(url.host)
    return url


def is_under(url: httpx.URL, prefix: httpx.URL) -> bool:
    """Same scheme, host and port, and a path that begins with the prefix's, step by step."""
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
    """The port to connect to."""
    return url.port or _DEFAULT_PORTS.get(url.scheme, 0)


def check_public(addresses: Sequence[str]) -> None:
    """Raises AddressRefused unless all of them belong to the public internet.

    All, and not one of them: who controls a name may give it a good address beside a bad one.
    """
    if not all(is_public(ipaddress.ip_address(address)) for address in addresses):
        raise AddressRefused("its host does not lead to the public internet")


def is_public(address: IpAddress) -> bool:
    """Whether it belongs to the public internet; one that carries an IPv4 address as that one does."""
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
        raise AddressRefused(f"it has {len(text)} characters, permitted are {LONGEST_URL}")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise AddressRefused("it is not an address such as https://example.com/hook") from error
    is_host = _HOST.match(url.raw_host) is not None
    if url.scheme not in _DEFAULT_PORTS or not is_host or not 0 < port_of(url) <= _LARGEST_PORT:
        raise AddressRefused("it is not an address such as https://example.com/hook")
    if len(str(url)) > LONGEST_URL:
        raise AddressRefused(f"encoded, it has more than {LONGEST_URL} characters")
    return url


def _check_literal(host: str) -> None:
    """A number instead of a name can be judged at once."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if not is_public(address):
        raise AddressRefused(f"{host} is not an address of the public internet")
