"""Rate limits: requests of an owner, and invalid keys, requests without a key and refusals of an address.

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
REFUSALS_PER_MINUTE = 600
# What a provider gives to one customer; single addresses are free to choose in it.
_IPV6_CUSTOMER = 64


class Rates:
    """Requests of the last minute, each limit counted by itself; thread-safe.

    An address is an IPv4 address or the /64 network of an IPv6 address. Methods raise TooManyRequests, which
    has the seconds until the next request is permitted.
    """

    def __init__(self, per_minute: int) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(per_minute, namespace="requests")
        self._failures = RateLimitItemPerMinute(FAILURES_PER_MINUTE, namespace="failures")
        self._open = RateLimitItemPerMinute(OPEN_PER_MINUTE, namespace="open")
        self._refusals = RateLimitItemPerMinute(REFUSALS_PER_MINUTE, namespace="refusals")

    def count(self, owner: str) -> None:
        """Count a request with any of the owner's keys or tokens."""
        if not self._limiter.hit(self._requests, owner):
            raise self._too_many(
                self._requests,
                owner,
                f"owner {owner!r} sent more than {self._requests.amount} requests within a minute, "
                "with all keys together",
            )

    def count_open(self, address: str) -> None:
        """Count a request for a path that needs no key."""
        client = client_network(address)
        if not self._limiter.hit(self._open, client):
            message = (
                f"more than {OPEN_PER_MINUTE} requests without a key in a minute from your address"
            )
            raise self._too_many(self._open, client, message)

    def check_address(self, address: str) -> None:
        """Raise if too many invalid keys came from that address; counts nothing."""
        client = client_network(address)
        if not self._limiter.test(self._failures, client):
            message = "too many requests with invalid keys from your address"
            raise self._too_many(self._failures, client, message)

    def count_failure(self, address: str) -> None:
        """Count an invalid key; `check_address` raises once there are too many."""
        self._limiter.hit(self._failures, client_network(address))

    def count_refusal(self, address: str) -> bool:
        """Count a refused request; return whether it is within the limit."""
        return self._limiter.hit(self._refusals, client_network(address))

    def _too_many(self, limit: RateLimitItem, client: str, message: str) -> TooManyRequests:
        until = self._limiter.get_window_stats(limit, client).reset_time
        return TooManyRequests(message, max(1, math.ceil(until - time.time())))


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
