"""Rate limits: requests per owner; invalid keys, requests without a key and rejections per address.

Counted in the memory of this process by a sliding window counter. The in-memory storage of the package
`limits` starts a thread every few requests, and `Thread.start` blocks the event loop until that thread
runs, which on a busy machine takes seconds.
"""

import math
import time
from collections import Counter
from ipaddress import IPv6Address, ip_address, ip_network

from service.core.errors import TooManyRequests

FAILURES_PER_MINUTE = 60
OPEN_PER_MINUTE = 600
REJECTIONS_PER_MINUTE = 600
# A provider's usual prefix for one customer, who can choose addresses within it freely.
_IPV6_CUSTOMER = 64
_MINUTE = 60.0


class SlidingWindow:
    """A limit of hits in any minute, for each client.

    The window is estimated from two minutes of the clock: the hits of the present one, and those of the one
    before it in proportion to how much of that is still within the last 60 s. So a client costs two numbers,
    and one that has sent nothing for two minutes costs nothing. May be used from several threads: a hit that
    is lost to a race raises the limit by one.
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._minute = 0
        self._present: Counter[str] = Counter()
        self._before: Counter[str] = Counter()

    def hit(self, client: str) -> bool:
        """Count a hit. Return False, and do not count it, if the limit is reached."""
        if not self.has_room(client):
            return False
        self._present[client] += 1
        return True

    def has_room(self, client: str) -> bool:
        """Return whether another hit would be counted."""
        left = 1.0 - self._seconds() / _MINUTE
        return int(self._before[client] * left) + self._present[client] < self.per_minute

    def seconds_to_room(self) -> int:
        """Seconds until the present minute of the clock ends, at least 1."""
        return max(1, math.ceil(_MINUTE - self._seconds()))

    def _seconds(self) -> float:
        """Seconds of the present minute, after moving on to it."""
        minute, seconds = divmod(time.time(), _MINUTE)
        if minute != self._minute:
            is_next = minute == self._minute + 1
            self._before = self._present if is_next else Counter()
            self._present, self._minute = Counter(), int(minute)
        assert 0 <= seconds < _MINUTE
        return seconds


class RateLimiter:
    """Requests of the last minute, each limit counted by itself; thread-safe.

    An address is an IPv4 address or the /64 network of an IPv6 address. Methods raise TooManyRequests, which
    has the seconds after which to try again.
    """

    def __init__(self, per_minute: int) -> None:
        self._requests = SlidingWindow(per_minute)
        self._failures = SlidingWindow(FAILURES_PER_MINUTE)
        self._open = SlidingWindow(OPEN_PER_MINUTE)
        self._rejections = SlidingWindow(REJECTIONS_PER_MINUTE)

    def count(self, owner: str) -> None:
        """Count a request with any of the owner's keys or tokens."""
        if not self._requests.hit(owner):
            raise TooManyRequests(
                f"owner {owner!r} sent more than {self._requests.per_minute} requests within a minute, "
                "with all keys together",
                self._requests.seconds_to_room(),
            )

    def count_open(self, address: str) -> None:
        """Count a request for a path that needs no key."""
        if not self._open.hit(client_network(address)):
            message = (
                f"more than {OPEN_PER_MINUTE} requests without a key in a minute from your address"
            )
            raise TooManyRequests(message, self._open.seconds_to_room())

    def check_address(self, address: str) -> None:
        """Raise if too many invalid keys came from that address, without counting."""
        if not self._failures.has_room(client_network(address)):
            message = "too many requests with invalid keys from your address"
            raise TooManyRequests(message, self._failures.seconds_to_room())

    def count_failure(self, address: str) -> None:
        """Count an invalid key; `check_address` raises once there are too many."""
        self._failures.hit(client_network(address))

    def count_rejection(self, address: str) -> bool:
        """Count a refused request; return whether it is within the limit."""
        return self._rejections.hit(client_network(address))


def client_network(address: str) -> str:
    """The unit in which a client is counted: its address, or its IPv6 network."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    # If the service listens on `::`, all IPv4 clients would be in one such network.
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return str(ip_network((parsed, _IPV6_CUSTOMER), strict=False))
