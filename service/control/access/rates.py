"""How many requests an owner may send, and how many wrong keys may come from one address.

Counted in the memory of this process with a sliding window: the library's exact moving window keeps
a list of all requests of the last minute, and never forgets an address that has sent one.
"""

import math
import time
from ipaddress import IPv6Address, ip_address, ip_network

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from service.errors import TooManyRequests

FAILURES_PER_MINUTE = 60
OPEN_PER_MINUTE = 600
# What a provider gives to one customer; single addresses are free to choose in it.
_IPV6_CUSTOMER = 64


class Rates:
    """Requests of the last minute. Raises TooManyRequests, which says when to come again."""

    def __init__(self, per_minute: int) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(per_minute, namespace="requests")
        self._failures = RateLimitItemPerMinute(FAILURES_PER_MINUTE, namespace="failures")

    def count(self, owner: str) -> None:
        """A request with any of the owner's keys or tokens."""
        if not self._limiter.hit(self._requests, owner):
            raise _refusal(
                self._limiter,
                self._requests,
                owner,
                f"owner {owner!r} sent more than {self._requests.amount} requests within a minute, "
                "with all keys together",
            )

    def check_address(self, address: str) -> None:
        """Whether another key may be tried from there."""
        client = client_network(address)
        if not self._limiter.test(self._failures, client):
            message = "too many requests with invalid keys from your address"
            raise _refusal(self._limiter, self._failures, client, message)

    def count_failure(self, address: str) -> None:
        """A key that was not valid came from there."""
        self._limiter.hit(self._failures, client_network(address))


def client_network(address: str) -> str:
    """As what a client is counted: its address, or for IPv6 the network of it."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    # Where the service listens on `::`, all of IPv4 comes in one such network.
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return str(ip_network((parsed, _IPV6_CUSTOMER), strict=False))


class OpenRates:
    """Requests of one client for what needs no key."""

    def __init__(self) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._limit = RateLimitItemPerMinute(OPEN_PER_MINUTE, namespace="open")

    def count(self, address: str) -> None:
        """One more of them. Raises TooManyRequests."""
        client = client_network(address)
        if not self._limiter.hit(self._limit, client):
            message = (
                f"more than {OPEN_PER_MINUTE} requests without a key in a minute from your address"
            )
            raise _refusal(self._limiter, self._limit, client, message)


def _refusal(
    limiter: SlidingWindowCounterRateLimiter, limit: RateLimitItem, caller: str, message: str
) -> TooManyRequests:
    until = limiter.get_window_stats(limit, caller).reset_time
    return TooManyRequests(message, max(1, math.ceil(until - time.time())))
